// A program that this one starts and talks to line by line, over its standard input and output.
//
// Thread safety: one thread. Ownership: the destructor ends the process and waits for it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace zp::apps {

class ChildProcess {
 public:
  // argv[0] is found through PATH. `environment`: "NAME=value", added to this process' own. Its
  // standard error is this process'.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(
      const std::vector<std::string>& argv, const std::vector<std::string>& environment = {});
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // Errors: Unavailable if the process has ended.
  absl::Status WriteLine(const std::string& line);
  // The next line, without its end. Unavailable if the process ends first, DeadlineExceeded if
  // there is none in time, Cancelled if a signal interrupts the wait.
  absl::StatusOr<std::string> ReadLine(std::chrono::seconds timeout);
  // Waits for the process to end by itself; its exit code, -1 if a signal ended it. Once.
  int AwaitEnd();

 private:
  ChildProcess(pid_t pid, int input_fd, int output_fd)
      : pid_(pid), input_fd_(input_fd), output_fd_(output_fd) {}

  const pid_t pid_;
  const int input_fd_;
  const int output_fd_;
  std::string read_;
  bool has_ended_ = false;
};

// Runs a program to its end. Internal with what it printed if it fails.
absl::Status RunProgram(const std::vector<std::string>& argv);

}  // namespace zp::apps
