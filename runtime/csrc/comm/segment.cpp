#include "comm/segment.h"

#include <cerrno>
#include <cstring>
#include <new>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

namespace corebound::comm {
namespace {

constexpr uint64_t segment_magic = 0x31646e756f626563; // "cebound1"
constexpr uint32_t layout_version = 2;

Status system_failure(const std::string &what, int error) { return {Code::system, what + ": " + std::strerror(error)}; }

struct flock whole_file(short type) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

// Reserves every page now: a mapping of a file that cannot be backed kills the process on first touch instead.
Status reserve(int fd, const std::string &path, size_t num_bytes) {
  int error = EINTR;
  while (error == EINTR) {
    error = posix_fallocate(fd, 0, static_cast<off_t>(num_bytes));
  }
  if (error == ENOSPC || error == EFBIG || error == ENOMEM || error == EDQUOT) {
    return {Code::no_space, path + ": cannot reserve " + std::to_string(num_bytes) + " bytes: " + std::strerror(error)};
  }
  return error == 0 ? Status{} : system_failure(path + ": cannot reserve memory", error);
}

} // namespace

Status Segment::create(const std::string &path, int rank, int size, size_t chunk_bytes) {
  fd_ = ::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd_ < 0) {
    return system_failure(path + ": cannot create", errno);
  }
  path_ = path;
  chunk_bytes_ = chunk_bytes;
  struct flock lock = whole_file(F_WRLCK);
  if (::fcntl(fd_, F_SETLK, &lock) != 0) {
    return system_failure(path + ": cannot lock", errno);
  }
  if (Status status = reserve(fd_, path, segment_bytes(chunk_bytes)); !status) {
    return status;
  }
  if (Status status = map(path); !status) {
    return status;
  }
  std::memset(base_, 0, segment_bytes(chunk_bytes)); // first touch, by the owner
  Header &header = *new (base_) Header;
  header.version = layout_version;
  header.rank = static_cast<uint32_t>(rank);
  header.size = static_cast<uint32_t>(size);
  header.pid = static_cast<int32_t>(::getpid());
  header.chunk_bytes = chunk_bytes;
  if (::getrandom(header.token, token_bytes, 0) != static_cast<ssize_t>(token_bytes)) {
    return system_failure("random token", errno);
  }
  header.magic = segment_magic;
  return {};
}

Status Segment::attach(const std::string &path, int rank, int size, size_t chunk_bytes, const uint8_t *token) {
  fd_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd_ < 0) {
    return system_failure(path + ": cannot open", errno);
  }
  chunk_bytes_ = chunk_bytes;
  struct stat info = {};
  if (::fstat(fd_, &info) != 0) {
    return system_failure(path + ": cannot examine", errno);
  }
  if (static_cast<size_t>(info.st_size) != segment_bytes(chunk_bytes)) {
    return {Code::misuse, path + ": expected " + std::to_string(segment_bytes(chunk_bytes)) + " bytes, found " +
                              std::to_string(info.st_size)};
  }
  if (Status status = map(path); !status) {
    return status;
  }
  const Header &header = this->header();
  if (header.magic != segment_magic || header.version != layout_version || header.rank != static_cast<uint32_t>(rank) ||
      header.size != static_cast<uint32_t>(size) || header.chunk_bytes != chunk_bytes ||
      std::memcmp(header.token, token, token_bytes) != 0) {
    return {Code::misuse, path + ": is not the segment that rank created (another machine's or run's file)"};
  }
  if (!owner_alive()) {
    return {Code::system, path + ": the owner's lock is not visible here"};
  }
  return {};
}

Status Segment::map(const std::string &path) {
  void *where = ::mmap(nullptr, segment_bytes(chunk_bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (where == MAP_FAILED) {
    return system_failure(path + ": cannot map", errno);
  }
  base_ = static_cast<char *>(where);
  return {};
}

void Segment::unlink() {
  if (!path_.empty()) {
    ::unlink(path_.c_str());
    path_.clear();
  }
}

void Segment::close() {
  unlink();
  if (base_ != nullptr) {
    ::munmap(base_, segment_bytes(chunk_bytes_));
    base_ = nullptr;
  }
  if (fd_ >= 0) {
    ::close(fd_);
    fd_ = -1;
  }
}

bool Segment::owner_alive() const {
  struct flock lock = whole_file(F_WRLCK);
  // When the question itself fails there is no evidence of death; the timeout still ends the wait.
  return ::fcntl(fd_, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

} // namespace corebound::comm
