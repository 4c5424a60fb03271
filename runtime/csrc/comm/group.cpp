// Waiting, failing, and leaving. The operations themselves are in operations.cpp.
#include "comm/group.h"

#include <climits>
#include <cstdio>
#include <ctime>

#include <emmintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "comm/clock.h"

namespace corebound::comm {
namespace {

// Spinning covers the imbalance of ranks at work (tens of microseconds); whoever waits longer sleeps. Members that
// share processors among themselves yield first, which is four times as fast, but only so often: since Linux 6.18 each
// yield gives up a whole slice.
constexpr int spins_alone = 2000;
constexpr int spins_crowded = 32;
constexpr int yields_crowded = 64;
constexpr double first_inspection_s = 0.001;
constexpr double inspection_every_s = 0.005;
// A wake-up may be missed in the instant in which a member falls asleep; that costs no more than this.
constexpr long longest_sleep_ns = 1'000'000;

// The kernel compares 32 bits; the low ones of the counter are first in memory.
uint32_t *futex_word(const std::atomic<uint64_t> &value) {
  return reinterpret_cast<uint32_t *>(const_cast<std::atomic<uint64_t> *>(&value));
}

std::string seconds(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", value);
  return text;
}

uint64_t departure_word(Code code, int culprit) {
  return static_cast<uint64_t>(code) | (static_cast<uint64_t>(culprit) << 32);
}

} // namespace

Group::Group(GroupSpec spec)
    : spec_(std::move(spec)), rank_(spec_.rank), size_(spec_.size), chunk_bytes_(spec_.chunk_bytes),
      num_spins_(spec_.oversubscribed ? spins_crowded : spins_alone), arithmetic_(arithmetic(isa::active())),
      segments_(static_cast<size_t>(spec_.size)) {}

Group::~Group() {
  if (segments_[rank_].mapped()) {
    uint64_t still_here = 0;
    segments_[rank_].header().departure.value.compare_exchange_strong(still_here, departed_in_order);
  }
}

Status Group::create() { return segments_[rank_].create(spec_.path, rank_, size_, chunk_bytes_); }

Status Group::attach(int peer, const std::string &path, const uint8_t *token) {
  return segments_[peer].attach(path, peer, size_, chunk_bytes_, token);
}

void Group::publish(Line which, uint64_t number, uint64_t signature) {
  Counter &own = line(rank_, which);
  own.signature[number & 1U] = signature;
  own.value.store(number, std::memory_order_release);
  if (own.num_sleepers.load(std::memory_order_relaxed) != 0) [[unlikely]] {
    ::syscall(SYS_futex, futex_word(own.value), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
}

void Group::sleep(Counter &counter, uint64_t number) {
  counter.num_sleepers.fetch_add(1);
  const uint64_t seen = counter.value.load();
  if (seen < number) {
    const timespec limit = {0, longest_sleep_ns};
    ::syscall(SYS_futex, futex_word(counter.value), FUTEX_WAIT, static_cast<uint32_t>(seen), &limit, nullptr, 0);
  }
  counter.num_sleepers.fetch_sub(1);
}

Code Group::await(Line which, int member, uint64_t number, const Wait &wait) {
  const std::atomic<uint64_t> &value = line(member, which).value;
  for (int spin = 0; spin < num_spins_; ++spin) {
    if (value.load(std::memory_order_acquire) >= number) {
      return Code::ok;
    }
    _mm_pause();
  }
  return await_slowly(which, member, number, wait);
}

Code Group::await_slowly(Line which, int member, uint64_t number, const Wait &wait) {
  Counter &counter = line(member, which);
  const std::atomic<uint64_t> &value = counter.value;
  const double timeout_s = wait.timeout_s < 0 ? spec_.timeout_s : wait.timeout_s;
  const double start_s = clock_s();
  if (wait.start_s < 0) {
    wait.start_s = start_s;
  }
  double inspection_s = start_s + first_inspection_s;
  int num_yields = spec_.oversubscribed ? yields_crowded : 0;
  while (value.load(std::memory_order_acquire) < number) {
    if (num_yields-- > 0) {
      ::sched_yield();
      continue;
    }
    const double now_s = clock_s();
    if (now_s >= inspection_s) {
      if (const Code code = inspect(which, member, number, wait); code != Code::ok) {
        return code;
      }
      inspection_s = now_s + inspection_every_s;
    }
    if (now_s - wait.start_s >= timeout_s) {
      return fail(Code::timed_out, member, wait, "waited " + seconds(timeout_s) + " for " + member_name(member));
    }
    sleep(counter, number);
  }
  return Code::ok;
}

Code Group::inspect(Line which, int member, uint64_t number, const Wait &wait) {
  for (int other = 0; other < size_; ++other) {
    const uint64_t departure = segments_[other].header().departure.value.load(std::memory_order_acquire);
    if (other == rank_ || departure == 0 || departure == departed_in_order) {
      continue;
    }
    const Code code = static_cast<Code>(departure & 0xffU);
    const int culprit = static_cast<int>(departure >> 32);
    const std::string witness = member_name(other);
    if (code == Code::peer_lost) {
      return fail(code, culprit, wait, member_name(culprit) + how_it_went(culprit) + " (noticed by " + witness + ")");
    }
    if (code == Code::timed_out) {
      return fail(code, culprit, wait, witness + " gave up waiting for " + member_name(culprit));
    }
    if (code == Code::elsewhere) {
      return fail(code, culprit, wait,
                  witness + " has no answer from rank " + std::to_string(culprit) + " on another host");
    }
    return fail(code, culprit, wait, witness + " left after an error of its own");
  }
  const bool here = segments_[member].header().departure.value.load(std::memory_order_acquire) != departed_in_order;
  if (here && segments_[member].owner_alive()) {
    return Code::ok;
  }
  // It may have published its part and ended between our last look at the counter and now.
  if (line(member, which).value.load(std::memory_order_acquire) >= number) {
    return Code::ok;
  }
  return fail(Code::peer_lost, member, wait, member_name(member) + how_it_went(member));
}

const char *Group::how_it_went(int member) const {
  const uint64_t departure = segments_[member].header().departure.value.load(std::memory_order_acquire);
  return departure == departed_in_order ? " left the group" : " died";
}

Code Group::check_signature(Line which, int member, uint64_t number, uint64_t signature, const Wait &wait) {
  const uint64_t theirs = line(member, which).signature[number & 1U];
  if (theirs == signature) {
    return Code::ok;
  }
  const auto text = [](uint64_t word) {
    return std::to_string(word >> 4) + " bytes of " + dtype_name(static_cast<DType>(word & 15U));
  };
  return fail(Code::misuse, member, wait,
              "members disagree: " + member_name(rank_) + " has " + text(signature) + ", " + member_name(member) +
                  " has " + text(theirs));
}

Code Group::fail(Code code, int culprit, const Wait &wait, const std::string &text) {
  broken_ = code;
  error_ = std::string("shm ") + wait.operation + " on rank " + std::to_string(spec_.global_ranks[rank_]) + ": " + text;
  uint64_t still_here = 0;
  segments_[rank_].header().departure.value.compare_exchange_strong(still_here, departure_word(code, culprit));
  return code;
}

void Group::abandon(int culprit) {
  uint64_t still_here = 0;
  segments_[rank_].header().departure.value.compare_exchange_strong(still_here,
                                                                    departure_word(Code::elsewhere, culprit));
  if (broken_ == Code::ok) {
    error_ = "shm on rank " + std::to_string(spec_.global_ranks[rank_]) + ": this rank abandoned the group";
    broken_ = Code::elsewhere;
  }
}

std::string Group::member_name(int member) const {
  return "rank " + std::to_string(spec_.global_ranks[member]) + " (pid " +
         std::to_string(segments_[member].header().pid) + ")";
}

std::string Group::describe() const {
  std::string out = std::string("{\"variant\": \"") + arithmetic_.variant +
                    "\", \"segment_bytes\": " + std::to_string(segment_bytes(chunk_bytes_)) +
                    ", \"chunk_bytes\": " + std::to_string(chunk_bytes_) +
                    ", \"probe_ms\": " + std::to_string(probe_s_ * 1e3) + ", \"rules\": [";
  for (size_t i = 0; i < rules_.size(); ++i) {
    const Choice choice = rules_[i].choice;
    out += std::string(i ? ", " : "") + "{\"max_bytes\": " + std::to_string(rules_[i].max_bytes) +
           ", \"algorithm\": \"" + (choice.two_shot ? "two-shot" : "one-shot") + "\", \"store\": \"" +
           (choice.streaming ? "streaming" : "plain") + "\"}";
  }
  return out + "]}";
}

} // namespace corebound::comm
