#include "apps/score_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <future>
#include <memory>
#include <unordered_set>
#include <utility>

#include "apps/line_reader.h"
#include "apps/score_line.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

// The output file, opened to add lines.
class AnswerFile {
 public:
  // Reads which answers are there already and cuts off a last line that is not whole.
  absl::Status Resume(const std::string& path) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      return Open(path, "wb");
    }
    ZP_ASSIGN_OR_RETURN(LineReader reader, LineReader::Open(path));
    std::string line;
    int64_t whole_bytes = 0;
    while (reader.Next(line)) {
      const bool is_whole =
          reader.read_bytes() == whole_bytes + static_cast<int64_t>(line.size()) + 1;
      const std::string id = ReadAnswerId(line);
      if (is_whole && id.empty()) {
        return absl::InvalidArgumentError(
            fmt::format("{}: line {} is no answer of an earlier run", path, reader.line_number()));
      }
      if (is_whole) {
        whole_bytes = reader.read_bytes();
        answered_.insert(id);
      }
    }
    std::filesystem::resize_file(path, whole_bytes, error);
    return Open(path, "ab");
  }

  absl::Status Create(const std::string& path) { return Open(path, "wb"); }

  bool HasAnswer(const std::string& id) const { return answered_.contains(id); }

  absl::Status Write(const std::string& line) {
    return std::fwrite(line.data(), 1, line.size(), file_.get()) == line.size() ? absl::OkStatus()
                                                                                : WriteError();
  }

  absl::Status Flush() { return std::fflush(file_.get()) == 0 ? absl::OkStatus() : WriteError(); }

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  absl::Status Open(const std::string& path, const char* mode) {
    path_ = path;
    file_.reset(std::fopen(path.c_str(), mode));
    return file_ != nullptr ? absl::OkStatus() : WriteError();
  }

  absl::Status WriteError() const {
    return absl::UnavailableError(fmt::format("cannot write {}: {}", path_, std::strerror(errno)));
  }

  std::string path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::unordered_set<std::string> answered_;
};

struct LineInFlight {
  std::string id;
  int64_t line_number = 0;
  size_t line_bytes = 0;
  int64_t end_byte = 0;  // of the line in the input
  absl::Status problem;  // of the line itself; then there is no answer to wait for
  std::future<gateway::Response> response;
};

class FileScorer {
 public:
  FileScorer(const ScoreFileOptions& options,
             const gateway::Handler& handler,
             const std::function<void(const ScoreFileCounts&)>& on_row)
      : options_(options), handler_(handler), on_row_(on_row) {}

  absl::StatusOr<ScoreFileCounts> Run() {
    ZP_RETURN_IF_ERROR(CheckScoreFiles(options_));
    ZP_ASSIGN_OR_RETURN(LineReader reader, LineReader::Open(options_.input_path));
    ZP_RETURN_IF_ERROR(options_.resume ? output_.Resume(options_.output_path)
                                       : output_.Create(options_.output_path));
    file_bytes_ = reader.file_bytes();
    const absl::Status status = ScoreAll(reader);
    for (LineInFlight& line : window_) {  // a write failed: the handler's answers come all the same
      if (line.response.valid()) {
        line.response.wait();
      }
    }
    ZP_RETURN_IF_ERROR(status);
    return counts_;
  }

 private:
  absl::Status ScoreAll(LineReader& reader) {
    std::string text;
    while (reader.Next(text)) {
      if (text.find_first_not_of(" \t\r") == std::string::npos) {
        continue;
      }
      Start(reader, text);
      while (!window_.empty() && (IsFull() || FrontIsReady())) {
        ZP_RETURN_IF_ERROR(WriteFront());
      }
    }
    while (!window_.empty()) {
      ZP_RETURN_IF_ERROR(WriteFront());
    }
    return output_.Flush();
  }

  void Start(const LineReader& reader, const std::string& text) {
    LineInFlight line;
    line.id = DefaultLineId(reader.line_number());
    line.line_number = reader.line_number();
    line.line_bytes = text.size();
    line.end_byte = reader.read_bytes();
    absl::StatusOr<ScoreLine> parsed =
        reader.is_cut() ? absl::InvalidArgumentError(fmt::format("the line is longer than {} bytes",
                                                                 LineReader::kMaxLineBytes))
                        : ReadScoreLine(text, reader.line_number());
    if (parsed.ok()) {
      line.id = parsed->id;
    }
    if (output_.HasAnswer(line.id)) {
      ++counts_.skipped;
      return;
    }
    if (parsed.ok()) {
      auto promise = std::make_shared<std::promise<gateway::Response>>();
      line.response = promise->get_future();
      handler_(std::move(parsed->request), {}, [promise](gateway::Response response) {
        promise->set_value(std::move(response));
      });
    }
    line.problem = parsed.status();
    window_bytes_ += line.line_bytes;
    window_.push_back(std::move(line));
  }

  bool IsFull() const {
    return window_.size() >= options_.window_lines || window_bytes_ >= options_.window_bytes;
  }

  bool FrontIsReady() const {
    const std::future<gateway::Response>& response = window_.front().response;
    return !response.valid() ||
           response.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }

  // Waits for the oldest line's answer.
  absl::Status WriteFront() {
    LineInFlight line = std::move(window_.front());
    window_.pop_front();
    window_bytes_ -= line.line_bytes;
    ++counts_.rows;
    if (file_bytes_ > 0) {
      counts_.done_share = static_cast<double>(line.end_byte) / static_cast<double>(file_bytes_);
    }
    absl::Status written;
    if (line.problem.ok()) {
      const gateway::Response response = line.response.get();
      Count(response);
      written = output_.Write(WriteAnswerLine(line.id, line.line_number, response));
    } else {
      ++counts_.errors;
      written = output_.Write(WriteProblemLine(line.id, line.line_number, line.problem));
    }
    on_row_(counts_);
    return written;
  }

  void Count(const gateway::Response& response) {
    counts_.errors += response.status == 200 ? 0 : 1;
    if (response.usage.has_value()) {
      counts_.asked_tokens += response.usage->prompt_tokens;
      counts_.computed_tokens += response.usage->computed_tokens;
      counts_.flops += response.usage->flops;
    }
  }

  const ScoreFileOptions& options_;
  const gateway::Handler& handler_;
  const std::function<void(const ScoreFileCounts&)>& on_row_;
  AnswerFile output_;
  std::deque<LineInFlight> window_;
  size_t window_bytes_ = 0;
  int64_t file_bytes_ = 0;
  ScoreFileCounts counts_;
};

}  // namespace

// Does not open the input: a pipe can be opened once.
absl::Status CheckScoreFiles(const ScoreFileOptions& options) {
  if (access(options.input_path.c_str(), R_OK) != 0) {
    return absl::NotFoundError(
        fmt::format("cannot read {}: {}", options.input_path, std::strerror(errno)));
  }
  std::error_code error;
  if (std::filesystem::equivalent(options.input_path, options.output_path, error) && !error) {
    return absl::InvalidArgumentError(
        fmt::format("{} is both input and output", options.input_path));
  }
  const auto size = std::filesystem::file_size(options.output_path, error);
  if (!error && size > 0 && !options.overwrite && !options.resume) {
    return absl::FailedPreconditionError(
        fmt::format("{} holds something already: give --resume to go on with it or --overwrite",
                    options.output_path));
  }
  return absl::OkStatus();
}

absl::StatusOr<ScoreFileCounts> ScoreFile(
    const ScoreFileOptions& options,
    const gateway::Handler& handler,
    const std::function<void(const ScoreFileCounts&)>& on_row) {
  return FileScorer(options, handler, on_row).Run();
}

}  // namespace zp::apps
