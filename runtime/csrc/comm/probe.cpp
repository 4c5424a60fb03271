// Finds, once per group, which algorithm and store kind are fastest here: that depends on where the members' processors
// sit, which no table knows. Member 0 measures and decides; the others follow, so all hold the same rules.
#include <algorithm>
#include <array>
#include <vector>

#include "comm/clock.h"
#include "comm/group.h"

namespace corebound::comm {
namespace {

constexpr std::array<Choice, 4> candidates = {{{false, false}, {false, true}, {true, false}, {true, true}}};
// Sizes of a decode step at small batches, and up to a whole chunk.
constexpr std::array<size_t, 4> probe_bytes = {8 << 10, 32 << 10, 128 << 10, 512 << 10};
constexpr size_t first_batch_bytes = 256 << 10; // data moved in one timed batch, at least one call
constexpr int num_batches = 3;
// A candidate has to win clearly over an earlier, simpler one: what remains is noise.
constexpr double clear_gain = 0.93;

} // namespace

// Mean seconds of one all-reduce in the fastest of a few batches. Collective; only member 0's figure is used.
double Group::time_choice(char *scratch, size_t num_bytes, int num_repeats, Code &code) {
  double best_s = 1e30;
  for (int batch = 0; batch <= num_batches && code == Code::ok; ++batch) {
    const double start_s = clock_s();
    for (int i = 0; i < num_repeats && code == Code::ok; ++i) {
      code = all_reduce(scratch, num_bytes / element_bytes(DType::bfloat16), DType::bfloat16, -1);
    }
    if (batch > 0) { // the first warms caches and page tables
      best_s = std::min(best_s, (clock_s() - start_s) / num_repeats);
    }
  }
  return best_s;
}

Code Group::probe(double budget_s) {
  const double start_s = clock_s();
  std::vector<char> scratch(std::min(probe_bytes.back(), chunk_bytes_));
  std::vector<Rule> found;
  Code code = Code::ok;
  for (const size_t wanted : probe_bytes) {
    const size_t num_bytes = std::min(wanted, chunk_bytes_);
    if (!found.empty() && num_bytes == found.back().max_bytes) {
      break;
    }
    const int num_repeats = static_cast<int>(std::max<size_t>(1, first_batch_bytes / num_bytes));
    size_t best = 0;
    double best_s = 1e30;
    for (size_t i = 0; i < candidates.size(); ++i) {
      unsigned char go_on = clock_s() - start_s < budget_s;
      if (code = broadcast(&go_on, 1, 0, -1); code != Code::ok) {
        return code;
      }
      if (!go_on) {
        // Sizes not reached keep the choice of the largest one that was: better than a guess.
        probe_s_ = clock_s() - start_s;
        return agree(found);
      }
      rules_ = {{num_bytes, candidates[i]}};
      const double time_s = time_choice(scratch.data(), num_bytes, num_repeats, code);
      if (code != Code::ok) {
        return code;
      }
      if (time_s < best_s * clear_gain) {
        best = i;
        best_s = time_s;
      }
    }
    found.push_back({num_bytes, candidates[best]});
  }
  probe_s_ = clock_s() - start_s;
  return agree(found);
}

// Replaces the rules by those of member 0, each reaching halfway (by ratio, two) to the next probed size.
Code Group::agree(std::vector<Rule> found) {
  if (found.empty()) {
    found.push_back({chunk_bytes_, {}});
  }
  for (size_t i = 0; i < found.size(); ++i) {
    found[i].max_bytes = i + 1 < found.size() ? found[i].max_bytes * 2 : chunk_bytes_;
  }
  rules_ = std::move(found);
  return broadcast(rules_.data(), rules_.size() * sizeof(Rule), 0, -1);
}

} // namespace corebound::comm
