// The halves of an all-reduce, for a caller that does something with the sums in between: the first `num_slices`
// members each own a slice of the data. Both use the counters and buffers of their kind exactly as all_reduce and
// all_gather do, so they may be mixed with those.
#include <algorithm>
#include <array>

#include "comm/turn.h"

namespace corebound::comm {
namespace {

constexpr size_t line_bytes = 64;

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

} // namespace

size_t slice_elements(size_t num_elements, size_t element, int num_slices) {
  const size_t share = (num_elements + static_cast<size_t>(num_slices) - 1) / static_cast<size_t>(num_slices);
  return round_up(share, line_bytes / element);
}

int Group::max_slices() const { return static_cast<int>(std::min<size_t>(size_, chunk_bytes_ / line_bytes)); }

Code Group::reduce_slices(void *data, size_t num_elements, DType dtype, int num_slices, double timeout_s) {
  const Turn turn(*this);
  if (turn.code() != Code::ok) {
    return turn.code();
  }
  if (static_cast<int>(dtype) >= num_sum_dtypes) {
    return Code::unsupported;
  }
  const Wait wait = {"all_reduce", timeout_s};
  const size_t element = element_bytes(dtype);
  const uint64_t signature = signature_of(num_elements * element, dtype);
  const size_t slice = slice_elements(num_elements, element, num_slices);
  // A buffer holds one piece of every slice, without the own one if every member owns a slice.
  const bool all_own = num_slices == size_;
  const size_t num_places = static_cast<size_t>(std::max(1, all_own ? num_slices - 1 : num_slices));
  const size_t piece = std::min(slice, chunk_bytes_ / num_places / line_bytes * line_bytes / element);
  const auto place = [&](int member, int owner) {
    return static_cast<size_t>(all_own && owner > member ? owner - 1 : owner) * piece * element;
  };
  char *bytes = static_cast<char *>(data);
  const auto begin = [&](int owner, size_t done) {
    const size_t end = std::min(num_elements, static_cast<size_t>(owner + 1) * slice);
    return std::min(end, static_cast<size_t>(owner) * slice + done);
  };
  std::array<const void *, max_members> sources;
  for (size_t done = 0; done < slice; done += piece) {
    const uint64_t number = ++num_reduces_;
    char *own = segments_[rank_].buffer(BufferKind::reduce, number);
    for (int owner = 0; owner < num_slices; ++owner) {
      if (owner != rank_) {
        const size_t first = begin(owner, done);
        arithmetic_.copy(own + place(rank_, owner), bytes + first * element,
                         (begin(owner, done + piece) - first) * element);
      }
    }
    publish(reduce_ready, number, signature);
    for (int member = 0; member < size_; ++member) {
      if (member == rank_) {
        continue;
      }
      if (Code code = await(reduce_ready, member, number, wait); code != Code::ok) {
        return code;
      }
      if (Code code = check_signature(reduce_ready, member, number, signature, wait); code != Code::ok) {
        return code;
      }
    }
    if (rank_ >= num_slices) {
      continue;
    }
    char *const sum = bytes + begin(rank_, done) * element;
    for (int member = 0; member < size_; ++member) {
      sources[member] =
          member == rank_ ? sum : segments_[member].buffer(BufferKind::reduce, number) + place(member, rank_);
    }
    arithmetic_.sum[static_cast<int>(dtype)](sum, sources.data(), size_,
                                             begin(rank_, done + piece) - begin(rank_, done));
  }
  return Code::ok;
}

Code Group::gather_slices(void *data, size_t num_elements, DType dtype, int num_slices, double timeout_s) {
  const Turn turn(*this);
  if (turn.code() != Code::ok) {
    return turn.code();
  }
  const Wait wait = {"all_reduce", timeout_s};
  const size_t element = element_bytes(dtype);
  const uint64_t signature = signature_of(num_elements * element, dtype);
  const size_t slice_bytes = slice_elements(num_elements, element, num_slices) * element;
  const size_t num_bytes = num_elements * element;
  char *bytes = static_cast<char *>(data);
  const auto begin = [&](int owner, size_t done) {
    const size_t end = std::min(num_bytes, static_cast<size_t>(owner + 1) * slice_bytes);
    return std::min(end, static_cast<size_t>(owner) * slice_bytes + done);
  };
  for (size_t done = 0; done < slice_bytes; done += chunk_bytes_) {
    const uint64_t number = ++num_gathers_;
    const auto length = [&](int owner) { return begin(owner, done + chunk_bytes_) - begin(owner, done); };
    if (rank_ < num_slices) {
      arithmetic_.copy(segments_[rank_].buffer(BufferKind::gather, number), bytes + begin(rank_, done), length(rank_));
    }
    // Members without a slice publish too: it says that they have read what came before.
    publish(gather_ready, number, signature);
    for (int step = 1; step < size_; ++step) {
      const int member = (rank_ + step) % size_;
      if (Code code = await(gather_ready, member, number, wait); code != Code::ok) {
        return code;
      }
      if (Code code = check_signature(gather_ready, member, number, signature, wait); code != Code::ok) {
        return code;
      }
      if (member < num_slices) {
        arithmetic_.copy(bytes + begin(member, done), segments_[member].buffer(BufferKind::gather, number),
                         length(member));
      }
    }
  }
  return Code::ok;
}

} // namespace corebound::comm
