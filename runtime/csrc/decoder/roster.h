// Who takes part in the jobs of a team.
//
// A member whose core has other work holds up everyone at each barrier while it is off that core: with half of one core
// taken, the others wait for most of a step of decode. Its share of the work would cost them less. So it is left out
// for a while, then tried again, and left out for longer each time that it holds up the others as before.
#pragma once

#include <cstddef>
#include <vector>

namespace corebound::decoder {

// What became of a member's time in a job.
struct Hours {
  double lost_s = 0;   // wanted to run, but something else had the core
  double waited_s = 0; // asleep in barriers, for others
};

class Roster {
public:
  explicit Roster(int size);

  // Who takes part in the next job, ascending. 0 always does: it is the caller.
  const std::vector<int> &present() const { return present_; }
  // After a job of `job_s` seconds that ended at `now_s`, with the hours of all members; those of the absent are not
  // looked at. Leaves out who held up member 0.
  void review(double now_s, double job_s, const std::vector<Hours> &hours);
  // Before a job: brings back whose time is over.
  void bring_back(double now_s);

private:
  struct Absence {
    double rest_s = 0;  // how long the last one was, 0 for who has done well since
    double until_s = 0; // when it is over
    bool away = false;
  };

  bool worth_leaving(std::ptrdiff_t num_late, double job_s, const std::vector<Hours> &hours) const;
  void list_present();

  std::vector<Absence> absences_;
  std::vector<int> present_;
};

} // namespace corebound::decoder
