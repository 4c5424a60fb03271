// The loops shared by all variants. A variant's file defines, in its own anonymous namespace, one type per dtype:
//   using Element; using Sum; lanes; load(p) -> Sum; add(Sum, Sum) -> Sum; store(p, Sum);
//   load_some(p, n), store_some(p, Sum, n) for the last 0 < n < lanes elements,
// and includes this file inside it. Only the variant's own code may be called here: an inline function of the standard
// library could be compiled with this file's instruction set and then be used by everyone.

template <class V, int fixed_sources>
void sum_fixed(typename V::Element *dst, const typename V::Element *const *sources, int num_sources,
               size_t num_elements) {
  const int n = fixed_sources > 0 ? fixed_sources : num_sources;
  constexpr size_t unroll = 4;
  // Sources were just written by other processors: their lines come from afar, so many must be under way at once. Never
  // past the end: that would take lines from under a peer that is writing its next message.
  constexpr size_t step = unroll * V::lanes;
  constexpr size_t ahead = 1024 / sizeof(typename V::Element);
  size_t i = 0;
  for (; i + step <= num_elements; i += step) {
    if (i + ahead + step <= num_elements) {
      for (int s = 0; s < n; ++s) {
        const char *line = reinterpret_cast<const char *>(sources[s] + i + ahead);
        for (size_t k = 0; k < step * sizeof(typename V::Element); k += 64) {
          __builtin_prefetch(line + k);
        }
      }
    }
    typename V::Sum sums[unroll];
    for (size_t k = 0; k < unroll; ++k) {
      sums[k] = V::load(sources[0] + i + k * V::lanes);
    }
    for (int s = 1; s < n; ++s) {
      for (size_t k = 0; k < unroll; ++k) {
        sums[k] = V::add(sums[k], V::load(sources[s] + i + k * V::lanes));
      }
    }
    for (size_t k = 0; k < unroll; ++k) {
      V::store(dst + i + k * V::lanes, sums[k]);
    }
  }
  for (; i + V::lanes <= num_elements; i += V::lanes) {
    typename V::Sum sum = V::load(sources[0] + i);
    for (int s = 1; s < n; ++s) {
      sum = V::add(sum, V::load(sources[s] + i));
    }
    V::store(dst + i, sum);
  }
  if (const size_t left = num_elements - i; left > 0) {
    typename V::Sum sum = V::load_some(sources[0] + i, left);
    for (int s = 1; s < n; ++s) {
      sum = V::add(sum, V::load_some(sources[s] + i, left));
    }
    V::store_some(dst + i, sum, left);
  }
}

template <class V> void sum(void *dst, const void *const *sources, int num_sources, size_t num_elements) {
  auto *out = static_cast<typename V::Element *>(dst);
  auto in = reinterpret_cast<const typename V::Element *const *>(sources);
  switch (num_sources) {
  case 2:
    return sum_fixed<V, 2>(out, in, 2, num_elements);
  case 4:
    return sum_fixed<V, 4>(out, in, 4, num_elements);
  default:
    return sum_fixed<V, 0>(out, in, num_sources, num_elements);
  }
}
