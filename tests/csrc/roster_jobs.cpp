// Feeds the roster of a team with jobs, for test_roster.py: `now job waited` of member 0, then what each member lost, a
// line a job; prints who takes part in the next one.
#include "decoder/roster.h"

#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

int main(int, char **argv) {
  const int size = std::atoi(argv[1]);
  corebound::decoder::Roster roster(size);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::vector<corebound::decoder::Hours> hours(static_cast<size_t>(size));
    double now_s = 0, job_s = 0;
    words >> now_s >> job_s >> hours[0].waited_s;
    for (corebound::decoder::Hours &of_member : hours) {
      words >> of_member.lost_s;
    }
    roster.review(now_s, job_s, hours);
    roster.bring_back(now_s);
    for (const int member : roster.present()) {
      std::cout << member << ' ';
    }
    std::cout << '\n';
  }
}
