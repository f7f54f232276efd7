// For tests: a model whose tokens are bytes and whose logits are made up, and a Service on it.
//
// Token id = byte value, so a test can write down the tokens of a text; 256 is "<|end|>". The
// logits after a prefix are a hash of the prefix: any two computations of the same row are
// bit-equal.
#pragma once

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/json_text.h"
#include "gateway/served_model.h"
#include "gateway/service.h"
#include "gtest/gtest.h"
#include "protocol/work.h"
#include "text/tokenizer.h"

namespace zp::gateway {

inline constexpr int32_t kFakeVocabCount = 257;
inline constexpr int32_t kFakeModelDim = 4;
inline constexpr int32_t kFakeMaxTokens = 100;

inline std::vector<float> FakeLogits(std::span<const protocol::TokenId> prefix) {
  std::seed_seq seed(prefix.begin(), prefix.end());
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> logit(-4.0f, 4.0f);
  std::vector<float> logits(kFakeVocabCount);
  std::generate(logits.begin(), logits.end(), [&] { return logit(random); });
  return logits;
}

inline double FakeLogSumExp(std::span<const protocol::TokenId> prefix) {
  double sum = 0;
  for (const float logit : FakeLogits(prefix)) {
    sum += std::exp(static_cast<double>(logit));
  }
  return std::log(sum);
}

// log P(token | prefix) as the server should say it.
inline double FakeLogProb(std::string_view prefix, unsigned char token) {
  const std::vector<protocol::TokenId> tokens = [&] {
    std::vector<protocol::TokenId> bytes;
    for (const char c : prefix) {
      bytes.push_back(static_cast<unsigned char>(c));
    }
    return bytes;
  }();
  return static_cast<double>(FakeLogits(tokens)[token]) -
         static_cast<double>(static_cast<float>(FakeLogSumExp(tokens)));
}

// Answers from a thread of its own, in order. While held, work waits (and can be cancelled).
class FakeWorkSink : public protocol::WorkSink {
 public:
  ~FakeWorkSink() override {
    {
      const std::lock_guard lock(mutex_);
      is_held_ = false;
      is_stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  absl::Status Submit(protocol::Work work, std::stop_token cancel, Done done) override {
    const std::lock_guard lock(mutex_);
    ++submit_count_;
    cache_salt_ = work.cache_salt;
    priority_ = work.priority;
    deadline_ = work.deadline;
    for (const protocol::Sequence& sequence : work.sequences) {
      if (sequence.rows.empty() && sequence.pooling == protocol::Pooling::kNone) {
        return absl::InvalidArgumentError("nothing is asked of a sequence");  // as the engine does
      }
    }
    if (!refusal_.ok()) {
      return refusal_;
    }
    queue_.push_back({std::move(work), std::move(cancel), std::move(done)});
    changed_.notify_all();
    return absl::OkStatus();
  }

  // Full and gone are what a sink knows of itself, whatever the work.
  absl::Status CheckRoom(std::optional<std::chrono::steady_clock::time_point>) override {
    const std::lock_guard lock(mutex_);
    const bool is_of_the_sink =
        absl::IsResourceExhausted(refusal_) || absl::IsUnavailable(refusal_);
    return is_of_the_sink && tells_early_ ? refusal_ : absl::OkStatus();
  }

  void SetHeld(bool is_held) {
    const std::lock_guard lock(mutex_);
    is_held_ = is_held;
    changed_.notify_all();
  }
  // `tells_early`: asked for room, too, and not only when a work comes.
  void RefuseWith(absl::Status refusal, bool tells_early = true) {
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(refusal);
    tells_early_ = tells_early;
  }
  void WaitForSubmits(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return submit_count_ >= count; });
  }
  // Waits until the held work at the front is no longer wanted.
  bool WaitForCancel() {
    for (int i = 0; i < 500; ++i) {
      {
        const std::lock_guard lock(mutex_);
        if (!queue_.empty() && queue_.front().cancel.stop_requested()) {
          return true;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  std::string cache_salt() {  // of the latest work
    const std::lock_guard lock(mutex_);
    return cache_salt_;
  }
  int64_t priority() {
    const std::lock_guard lock(mutex_);
    return priority_;
  }
  std::optional<std::chrono::steady_clock::time_point> deadline() {
    const std::lock_guard lock(mutex_);
    return deadline_;
  }
  int submit_count() {
    const std::lock_guard lock(mutex_);
    return submit_count_;
  }

 private:
  struct Entry {
    protocol::Work work;
    std::stop_token cancel;
    Done done;
  };

  void Serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return is_stopping_ || (!is_held_ && !queue_.empty()); });
      if (queue_.empty()) {
        return;
      }
      Entry entry = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      if (entry.cancel.stop_requested()) {
        entry.done(absl::CancelledError("nobody waits"));
      } else {
        entry.done(Answer(entry.work));
      }
      lock.lock();
    }
  }

  static protocol::WorkResult Answer(const protocol::Work& work) {
    protocol::WorkResult result;
    result.usage.prompt_tokens = work.token_count();
    result.usage.cached_tokens = std::min<int64_t>(work.token_count() - 1, 3);
    result.usage.computed_tokens = work.token_count() - result.usage.cached_tokens;
    result.usage.flops = 1e6;
    for (const protocol::Sequence& sequence : work.sequences) {
      protocol::SequenceResult& answer = result.sequences.emplace_back();
      for (const protocol::RowAsk& ask : sequence.rows) {
        answer.rows.push_back(AnswerRow(ask, std::span(sequence.tokens).first(ask.position + 1)));
      }
      if (sequence.pooling != protocol::Pooling::kNone) {
        const std::vector<float> logits = FakeLogits(sequence.tokens);
        answer.pooled.assign(logits.begin(), logits.begin() + kFakeModelDim);
      }
    }
    return result;
  }

  static protocol::Row AnswerRow(const protocol::RowAsk& ask,
                                 std::span<const protocol::TokenId> prefix) {
    const std::vector<float> logits = FakeLogits(prefix);
    protocol::Row row;
    for (const protocol::TokenId column : ask.columns) {
      row.column_logits.push_back(logits[column]);
    }
    if (ask.full_vocabulary) {
      row.log_sum_exp = static_cast<float>(FakeLogSumExp(prefix));
      for (protocol::TokenId token = 0; token < kFakeVocabCount; ++token) {
        row.top.push_back({.token = token, .logit = logits[token]});
      }
      std::stable_sort(row.top.begin(), row.top.end(), [](const auto& left, const auto& right) {
        return left.logit > right.logit;
      });
      row.top.resize(ask.top_count);
    }
    return row;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  absl::Status refusal_;
  bool tells_early_ = true;
  int submit_count_ = 0;
  std::string cache_salt_;
  int64_t priority_ = 0;
  std::optional<std::chrono::steady_clock::time_point> deadline_;
  bool is_held_ = false;
  bool is_stopping_ = false;
  std::thread thread_{[this] { Serve(); }};
};

// tokenizer.json of a byte-level BPE without merges.
inline std::string ByteTokenizerJson() {
  boost::json::object vocab;
  int next_free = 256;  // GPT-2's alphabet: bytes that do not print get characters from U+0100 on
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
    const int code = prints ? byte : next_free++;
    std::string character;
    if (code < 0x80) {
      character.push_back(static_cast<char>(code));
    } else {
      character.push_back(static_cast<char>(0xC0 | (code >> 6)));
      character.push_back(static_cast<char>(0x80 | (code & 0x3F)));
    }
    vocab[character] = byte;
  }
  const boost::json::object byte_level = {{"type", "ByteLevel"},
                                          {"add_prefix_space", false},
                                          {"trim_offsets", false},
                                          {"use_regex", false}};
  const boost::json::object end_token = {{"id", 256},
                                         {"content", "<|end|>"},
                                         {"single_word", false},
                                         {"lstrip", false},
                                         {"rstrip", false},
                                         {"normalized", false},
                                         {"special", true}};
  return boost::json::serialize(boost::json::object{{"version", "1.0"},
                                                    {"truncation", nullptr},
                                                    {"padding", nullptr},
                                                    {"added_tokens", boost::json::array{end_token}},
                                                    {"normalizer", nullptr},
                                                    {"pre_tokenizer", byte_level},
                                                    {"post_processor", nullptr},
                                                    {"decoder", byte_level},
                                                    {"model",
                                                     {{"type", "BPE"},
                                                      {"dropout", nullptr},
                                                      {"unk_token", nullptr},
                                                      {"continuing_subword_prefix", nullptr},
                                                      {"end_of_word_suffix", nullptr},
                                                      {"fuse_unk", false},
                                                      {"byte_fallback", false},
                                                      {"ignore_merges", false},
                                                      {"vocab", vocab},
                                                      {"merges", boost::json::array()}}}});
}

inline spec::ModelSpec FakeSpec() {
  spec::ModelSpec spec;
  spec.vocab_count = kFakeVocabCount;
  spec.model_dim = kFakeModelDim;
  spec.max_position_count = kFakeMaxTokens;
  return spec;
}

inline std::unique_ptr<text::Tokenizer> ByteTokenizer() {
  absl::StatusOr<std::unique_ptr<text::Tokenizer>> tokenizer =
      text::Tokenizer::Parse(ByteTokenizerJson(), "byte tokenizer");
  if (!tokenizer.ok()) {
    throw std::runtime_error(base::MessageOf(tokenizer.status()));
  }
  return *std::move(tokenizer);
}

struct Answer {
  Response response;
  boost::json::value body;  // null where it is not JSON

  int status() const { return response.status; }
  std::string error() const { return std::string(body.at("error").at("message").as_string()); }
  std::string param() const {
    const boost::json::value& param = body.at("error").at("param");
    return param.is_string() ? std::string(param.get_string()) : "";
  }
};

// Everything that a test of the gateway needs.
struct TestService {
  explicit TestService(const ServiceOptions& options = {}) : service(model, sink, options) {}

  std::unique_ptr<text::Tokenizer> tokenizer = ByteTokenizer();
  spec::ModelSpec spec = FakeSpec();
  ServedModel model{"fake", *tokenizer, spec};
  FakeWorkSink sink;
  Service service;

  Answer Ask(const std::string& method,
             const std::string& path,
             const std::string& body,
             const std::string& timeout_ms = "") {
    std::promise<Response> promise;
    service.Handle({.method = method,
                    .path = path,
                    .body = body,
                    .request_id = "test",
                    .timeout_ms = timeout_ms},
                   {},
                   [&promise](Response response) { promise.set_value(std::move(response)); });
    Answer answer{.response = promise.get_future().get(), .body = nullptr};
    if (answer.response.content_type == "application/json") {
      absl::StatusOr<boost::json::value> parsed = ParseJson(answer.response.body);
      EXPECT_TRUE(parsed.ok()) << answer.response.body;
      answer.body = parsed.ok() ? *parsed : boost::json::value();
    }
    return answer;
  }
  Answer Post(const std::string& path, const std::string& body) { return Ask("POST", path, body); }
};

}  // namespace zp::gateway
