#include "decoder/roster.h"

#include <algorithm>

namespace corebound::decoder {
namespace {

constexpr double first_rest_s = 0.5, longest_rest_s = 8;
// Of a job's time: what who is late has lost at least, and what member 0 has waited for others at least.
constexpr double least_lost = 0.2, least_waited = 0.1;

} // namespace

Roster::Roster(int size) : absences_(static_cast<size_t>(size)), present_(static_cast<size_t>(size)) {
  for (size_t member = 0; member < present_.size(); ++member) {
    present_[member] = static_cast<int>(member);
  }
}

// Without who is late the others do its work too, at worst in size / (size - 1) of the time, but wait no more.
bool Roster::holds_up(double job_s, const std::vector<Hours> &hours) const {
  const auto size = static_cast<double>(present_.size());
  return hours[0].waited_s > std::max(least_waited, 1 / size) * job_s;
}

void Roster::review(double now_s, double job_s, const std::vector<Hours> &hours) {
  const auto late = [&](int member) { return hours[static_cast<size_t>(member)].lost_s > least_lost * job_s; };
  // Where most of them are late, the machine has too much work for any choice of members.
  const auto num_late = std::count_if(present_.begin(), present_.end(), late);
  const bool leaving = holds_up(job_s, hours) && 2 * num_late <= static_cast<std::ptrdiff_t>(present_.size());
  for (const int member : present_) {
    Absence &absence = absences_[static_cast<size_t>(member)];
    if (member > 0 && leaving && late(member)) {
      absence.rest_s = std::clamp(2 * absence.rest_s, first_rest_s, longest_rest_s);
      absence.until_s = now_s + absence.rest_s;
      absence.away = true;
    } else if (!late(member)) {
      absence.rest_s = 0;
    }
  }
  present_.clear();
  for (size_t member = 0; member < absences_.size(); ++member) {
    Absence &absence = absences_[member];
    absence.away = absence.away && now_s < absence.until_s;
    if (!absence.away) {
      present_.push_back(static_cast<int>(member));
    }
  }
}

} // namespace corebound::decoder
