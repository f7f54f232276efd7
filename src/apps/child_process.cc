#include "apps/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"

extern char** environ;

namespace zp::apps {
namespace {

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (std::string& text : strings) {
    pointers.push_back(text.data());
  }
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    const std::vector<std::string>& argv, const std::vector<std::string>& environment) {
  signal(SIGPIPE, SIG_IGN);  // a child that ends is an error of WriteLine, not this process' end
  std::array<int, 2> input;
  std::array<int, 2> output;
  if (pipe2(input.data(), O_CLOEXEC) != 0 || pipe2(output.data(), O_CLOEXEC) != 0) {
    return absl::InternalError(fmt::format("pipe: {}", std::strerror(errno)));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output[1], STDOUT_FILENO);
  std::vector<std::string> arguments = argv;
  std::vector<std::string> variables = environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    variables.emplace_back(*variable);
  }
  pid_t pid = -1;
  const int error = posix_spawnp(&pid,
                                 argv[0].c_str(),
                                 &actions,
                                 nullptr,
                                 Pointers(arguments).data(),
                                 Pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  close(input[0]);
  close(output[1]);
  if (error != 0) {
    close(input[1]);
    close(output[0]);
    return absl::NotFoundError(fmt::format("{}: {}", argv[0], std::strerror(error)));
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, input[1], output[0]));
}

ChildProcess::~ChildProcess() {
  close(input_fd_);
  close(output_fd_);
  if (!has_ended_) {
    kill(pid_, SIGTERM);
    AwaitEnd();
  }
}

int ChildProcess::AwaitEnd() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  has_ended_ = true;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

absl::Status ChildProcess::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  if (write(input_fd_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return absl::UnavailableError(
        fmt::format("process {} takes no input: {}", pid_, std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ChildProcess::ReadLine(std::chrono::seconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (true) {
    if (const size_t end = read_.find('\n'); end != std::string::npos) {
      std::string line = read_.substr(0, end);
      read_.erase(0, end + 1);
      return line;
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd fd = {.fd = output_fd_, .events = POLLIN, .revents = 0};
    const int ready = left.count() <= 0 ? 0 : poll(&fd, 1, static_cast<int>(left.count()));
    if (ready < 0) {
      return absl::CancelledError(fmt::format("interrupted: {}", std::strerror(errno)));
    }
    if (ready == 0) {
      return absl::DeadlineExceededError(
          fmt::format("process {} said nothing for {} s", pid_, timeout.count()));
    }
    std::array<char, 4096> bytes;
    const ssize_t count = read(output_fd_, bytes.data(), bytes.size());
    if (count <= 0 && !read_.empty()) {
      return std::exchange(read_, "");  // a last line without its end
    }
    if (count <= 0) {
      return absl::UnavailableError(fmt::format("process {} has ended", pid_));
    }
    read_.append(bytes.data(), count);
  }
}

absl::Status RunProgram(const std::vector<std::string>& argv) {
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ChildProcess> process, ChildProcess::Start(argv));
  if (process->AwaitEnd() != 0) {
    return absl::InternalError(fmt::format("`{}` failed", fmt::join(argv, " ")));
  }
  return absl::OkStatus();
}

}  // namespace zp::apps
