// The collectives, built from publish() and await().
#include <algorithm>
#include <array>
#include <cstring>

#include "comm/turn.h"

namespace corebound::comm {

Choice Group::choose(size_t num_bytes) const {
  for (const Rule &rule : rules_) {
    if (num_bytes <= rule.max_bytes) {
      return rule.choice;
    }
  }
  return rules_.empty() ? Choice{} : rules_.back().choice;
}

Code Group::all_reduce(void *data, size_t num_elements, DType dtype, double timeout_s) {
  const Turn turn(*this);
  if (turn.code() != Code::ok) {
    return turn.code();
  }
  if (static_cast<int>(dtype) >= num_sum_dtypes) {
    return Code::unsupported;
  }
  const Wait wait = {"all_reduce", timeout_s};
  const size_t element = element_bytes(dtype);
  const size_t per_chunk = chunk_bytes_ / element;
  const uint64_t signature = signature_of(num_elements * element, dtype);
  char *next = static_cast<char *>(data);
  for (size_t left = num_elements; left > 0;) {
    const size_t count = std::min(left, per_chunk);
    const Choice choice = choose(count * element);
    const Code code = choice.two_shot ? two_shot(next, count, dtype, signature, choice, wait)
                                      : one_shot(next, count, dtype, signature, choice, wait);
    if (code != Code::ok) {
      return code;
    }
    next += count * element;
    left -= count;
  }
  return Code::ok;
}

Code Group::one_shot(char *data, size_t count, DType dtype, uint64_t signature, Choice choice, const Wait &wait) {
  const uint64_t number = ++num_reduces_;
  const CopyFunction copy = choice.streaming ? arithmetic_.copy_streaming : arithmetic_.copy;
  copy(segments_[rank_].buffer(BufferKind::reduce, number), data, count * element_bytes(dtype));
  publish(reduce_ready, number, signature);
  std::array<const void *, max_members> sources;
  for (int member = 0; member < size_; ++member) {
    if (member == rank_) {
      sources[member] = data;
      continue;
    }
    if (Code code = await(reduce_ready, member, number, wait); code != Code::ok) {
      return code;
    }
    if (Code code = check_signature(reduce_ready, member, number, signature, wait); code != Code::ok) {
      return code;
    }
    sources[member] = segments_[member].buffer(BufferKind::reduce, number);
  }
  arithmetic_.sum[static_cast<int>(dtype)](data, sources.data(), size_, count);
  return Code::ok;
}

Code Group::two_shot(char *data, size_t count, DType dtype, uint64_t signature, Choice choice, const Wait &wait) {
  const uint64_t number = ++num_reduces_;
  const CopyFunction copy = choice.streaming ? arithmetic_.copy_streaming : arithmetic_.copy;
  const size_t element = element_bytes(dtype);
  // Slices end on cache lines, so no line has two writers; the last ones may be short or empty.
  const size_t line_elements = 64 / element;
  const size_t share = (count + static_cast<size_t>(size_) - 1) / static_cast<size_t>(size_);
  const size_t slice = (share + line_elements - 1) / line_elements * line_elements;
  const auto begin = [&](int member) { return std::min(count, static_cast<size_t>(member) * slice) * element; };
  const auto length = [&](int member) { return begin(member + 1) - begin(member); };

  char *own = segments_[rank_].buffer(BufferKind::reduce, number);
  const size_t after = begin(rank_ + 1);
  copy(own, data, begin(rank_)); // the own slice is summed straight from `data`
  copy(own + after, data + after, count * element - after);
  publish(reduce_ready, number, signature);

  std::array<const void *, max_members> sources;
  for (int member = 0; member < size_; ++member) {
    if (member == rank_) {
      sources[member] = data + begin(rank_);
      continue;
    }
    if (Code code = await(reduce_ready, member, number, wait); code != Code::ok) {
      return code;
    }
    if (Code code = check_signature(reduce_ready, member, number, signature, wait); code != Code::ok) {
      return code;
    }
    sources[member] = segments_[member].buffer(BufferKind::reduce, number) + begin(rank_);
  }
  arithmetic_.sum[static_cast<int>(dtype)](own + begin(rank_), sources.data(), size_, length(rank_) / element);
  publish(reduce_done, number, signature);

  arithmetic_.copy(data + begin(rank_), own + begin(rank_), length(rank_));
  for (int step = 1; step < size_; ++step) { // each starts at its neighbour, which spreads the reads
    const int member = (rank_ + step) % size_;
    if (Code code = await(reduce_done, member, number, wait); code != Code::ok) {
      return code;
    }
    const char *theirs = segments_[member].buffer(BufferKind::reduce, number);
    arithmetic_.copy(data + begin(member), theirs + begin(member), length(member));
  }
  return Code::ok;
}

Code Group::all_gather(const void *in, void *out, size_t num_bytes, double timeout_s) {
  const Turn turn(*this);
  if (turn.code() != Code::ok) {
    return turn.code();
  }
  const Wait wait = {"all_gather", timeout_s};
  const uint64_t signature = signature_of(num_bytes, DType::bytes);
  const char *from = static_cast<const char *>(in);
  char *to = static_cast<char *>(out);
  for (size_t done = 0; done < num_bytes;) {
    const size_t count = std::min(num_bytes - done, chunk_bytes_);
    const uint64_t number = ++num_gathers_;
    arithmetic_.copy(segments_[rank_].buffer(BufferKind::gather, number), from + done, count);
    publish(gather_ready, number, signature);
    arithmetic_.copy(to + static_cast<size_t>(rank_) * num_bytes + done, from + done, count);
    for (int step = 1; step < size_; ++step) {
      const int member = (rank_ + step) % size_;
      if (Code code = await(gather_ready, member, number, wait); code != Code::ok) {
        return code;
      }
      if (Code code = check_signature(gather_ready, member, number, signature, wait); code != Code::ok) {
        return code;
      }
      arithmetic_.copy(to + static_cast<size_t>(member) * num_bytes + done,
                       segments_[member].buffer(BufferKind::gather, number), count);
    }
    done += count;
  }
  return Code::ok;
}

Code Group::broadcast(void *data, size_t num_bytes, int root, double timeout_s) {
  const Turn turn(*this);
  if (turn.code() != Code::ok) {
    return turn.code();
  }
  const Wait wait = {"broadcast", timeout_s};
  const uint64_t signature = signature_of(num_bytes, DType::bytes);
  char *bytes = static_cast<char *>(data);
  for (size_t done = 0; done < num_bytes;) {
    const size_t count = std::min(num_bytes - done, chunk_bytes_);
    const uint64_t number = ++num_broadcasts_;
    if (rank_ == root) {
      for (int member = 0; number > 2 && member < size_; ++member) {
        if (member == rank_) {
          continue;
        }
        if (Code code = await(broadcast_done, member, number - 2, wait); code != Code::ok) {
          return code;
        }
      }
      arithmetic_.copy(segments_[rank_].buffer(BufferKind::broadcast, number), bytes + done, count);
      publish(broadcast_ready, number, signature);
    } else {
      if (Code code = await(broadcast_ready, root, number, wait); code != Code::ok) {
        return code;
      }
      if (Code code = check_signature(broadcast_ready, root, number, signature, wait); code != Code::ok) {
        return code;
      }
      arithmetic_.copy(bytes + done, segments_[root].buffer(BufferKind::broadcast, number), count);
    }
    publish(broadcast_done, number, signature);
    done += count;
  }
  return Code::ok;
}

Code Group::barrier(double timeout_s) {
  const Turn turn(*this);
  if (turn.code() != Code::ok) {
    return turn.code();
  }
  const Wait wait = {"barrier", timeout_s};
  const uint64_t number = ++num_barriers_;
  publish(barrier_ready, number, 0);
  for (int member = 0; member < size_; ++member) {
    if (member == rank_) {
      continue;
    }
    if (Code code = await(barrier_ready, member, number, wait); code != Code::ok) {
      return code;
    }
  }
  return Code::ok;
}

} // namespace corebound::comm
