// Reads rows of a file a piece at a time and hands them to the active variant. Compiled for the baseline.
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "kernels/panel_fill.h"

namespace corebound::kernels {
namespace {

constexpr int64_t readahead_bytes = 128 << 10; // what one call asks for: more than the kernel grants is not remembered

// What one piece has of a file that comes from a disk, or of which nothing is known yet: panels are filled from it
// while the disk reads on, and larger ones wait for longer. From the page cache, larger ones cost fewer calls.
constexpr int64_t disk_piece_bytes = 256 << 10;

int64_t element_bytes(ValueKind kind) { return kind == ValueKind::float32 ? 4 : 2; }

// Tells the kernel that the bytes will be read soon.
void announce(int descriptor, int64_t offset, int64_t num_bytes) {
  for (int64_t at = 0; at < num_bytes; at += readahead_bytes) {
    posix_fadvise(descriptor, offset + at, std::min(readahead_bytes, num_bytes - at), POSIX_FADV_WILLNEED);
  }
}

class FileRows {
public:
  explicit FileRows(const FillArgs &args) : args_(args) {}

  // Reads rows from `first` of args on; false where the file has none.
  bool read(int64_t first, int64_t rows, char *to) {
    const int64_t offset = args_.offset + first * args_.row_bytes;
    if (args_.read_bytes == args_.row_bytes) {
      return read_span(offset, rows * args_.row_bytes, first, to);
    }
    for (int64_t row = 0; row < rows; ++row) {
      if (!read_span(offset + row * args_.row_bytes, args_.read_bytes, first, to + row * args_.read_bytes)) {
        return false;
      }
    }
    return true;
  }

  // Whether all that was read so far was in the page cache; false before the first.
  bool is_cached() const { return cached_; }

private:
  bool read_span(int64_t offset, int64_t num_bytes, int64_t row, char *to) {
    while (num_bytes > 0) {
      iovec span{to, static_cast<size_t>(num_bytes)};
      ssize_t count = announced_ ? -1 : preadv2(args_.descriptor, &span, 1, offset, RWF_NOWAIT);
      cached_ = count > 0;
      if (count <= 0) {
        if (!announced_) { // not in the page cache: let the disk work on all that is left
          announced_ = true;
          announce_from(row);
        }
        count = pread(args_.descriptor, to, static_cast<size_t>(num_bytes), offset);
      }
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count <= 0) {
        return false;
      }
      to += count;
      offset += count;
      num_bytes -= count;
    }
    return true;
  }

  void announce_from(int64_t row) const {
    constexpr int64_t most_in_vain = 4; // bytes that are read for one that is wanted
    if (args_.read_bytes * most_in_vain >= args_.row_bytes) {
      announce(args_.descriptor, args_.offset + row * args_.row_bytes, (args_.rows - row) * args_.row_bytes);
    }
  }

  const FillArgs &args_;
  bool announced_ = false, cached_ = false;
};

} // namespace

int64_t fill_from_file(const FillArgs &args) {
  const KernelSet &kernels = active_kernels();
  const int64_t element = element_bytes(args.kind), inputs = args.matrix.inputs;
  const int64_t rounded_bytes = args.kind == ValueKind::bfloat16 ? 0 : fill_rows_unit * inputs * 2;
  auto *rounded = reinterpret_cast<uint16_t *>(args.scratch);
  char *buffer = args.scratch + (rounded_bytes + 63) / 64 * 64;
  const int64_t room = (args.scratch + args.scratch_bytes - buffer) / args.read_bytes;
  const auto units = [](int64_t rows) { return std::max(fill_rows_unit, rows / fill_rows_unit * fill_rows_unit); };
  const int64_t most = units(room), of_disk = std::min(most, units(disk_piece_bytes / args.read_bytes));
  FileRows file(args);
  for (int64_t done = 0; done < args.rows;) {
    // Up to where a unit may end, so that the next piece begins with one.
    const int64_t row = args.first_row + done, half = args.matrix.gated ? args.matrix.outputs / 2 : args.matrix.outputs;
    const int64_t step = file.is_cached() ? most : of_disk;
    const int64_t count = std::min(args.rows - done, step - row % half % fill_rows_unit);
    if (!file.read(done, count, buffer)) {
      return done;
    }
    const ValueArgs values{buffer + args.skipped * element, args.kind, count, inputs, args.read_bytes / element};
    if (!kernels.fill_panel_rows(args.matrix, values, row, args.largest, rounded)) {
      return done;
    }
    done += count;
  }
  return args.rows;
}

void fill_rows(const PanelMatrix &matrix, const ValueArgs &args, int64_t first_row) {
  const int64_t rounded = args.kind == ValueKind::bfloat16 ? 0 : std::min(args.rows, fill_rows_unit) * args.columns;
  std::vector<uint16_t> room(static_cast<size_t>(rounded));
  active_kernels().fill_panel_rows(matrix, args, first_row, std::numeric_limits<float>::max(), room.data());
}

} // namespace corebound::kernels
