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

// Without who is late the others do its work too, in at most size / (size - num_late) of the time that they worked, but
// wait no more. Where most are late, the machine has too much work for any choice of members.
bool Roster::worth_leaving(std::ptrdiff_t num_late, double job_s, const std::vector<Hours> &hours) const {
  const auto size = static_cast<double>(present_.size()), late = static_cast<double>(num_late);
  return num_late > 0 && 2 * late <= size && hours[0].waited_s > std::max(least_waited, late / size) * job_s;
}

void Roster::review(double now_s, double job_s, const std::vector<Hours> &hours) {
  const auto late = [&](int member) {
    return member > 0 && hours[static_cast<size_t>(member)].lost_s > least_lost * job_s;
  };
  const bool leaving = worth_leaving(std::count_if(present_.begin(), present_.end(), late), job_s, hours);
  for (const int member : present_) {
    Absence &absence = absences_[static_cast<size_t>(member)];
    if (!late(member)) {
      absence.rest_s = 0;
    } else if (leaving) {
      absence.rest_s = std::clamp(2 * absence.rest_s, first_rest_s, longest_rest_s);
      absence.until_s = now_s + absence.rest_s;
      absence.away = true;
    }
  }
  list_present();
}

void Roster::bring_back(double now_s) {
  for (Absence &absence : absences_) {
    absence.away = absence.away && now_s < absence.until_s;
  }
  list_present();
}

void Roster::list_present() {
  present_.clear();
  for (size_t member = 0; member < absences_.size(); ++member) {
    if (!absences_[member].away) {
      present_.push_back(static_cast<int>(member));
    }
  }
}

} // namespace corebound::decoder
