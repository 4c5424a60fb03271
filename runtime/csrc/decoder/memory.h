// Memory that grows and is never initialised twice: what was zero stays zero where nobody writes.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace corebound::decoder {

template <class T> class Buffer {
public:
  // At least `count` elements, aligned to a cache line. Growing forgets the contents and zeroes them.
  T *get(int64_t count) {
    if (count > count_) {
      const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 128 * 128;
      memory_.reset(static_cast<T *>(std::aligned_alloc(128, bytes)));
      if (!memory_) {
        count_ = 0;
        throw std::bad_alloc();
      }
      std::memset(memory_.get(), 0, bytes);
      count_ = count;
    }
    return memory_.get();
  }
  T *data() const { return memory_.get(); }

private:
  struct Free {
    void operator()(T *p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t count_ = 0;
};

} // namespace corebound::decoder
