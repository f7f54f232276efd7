// From hidden states to the rows of logits that were asked for.
//
// Rows over the whole vocabulary go through the output head in chunks of bounded memory: a prompt
// of n tokens never makes an [n, vocab] matrix; a row that several sequences ask about is computed
// once. Label-only rows touch their columns alone.
//
// Thread safety: engine thread only.
// Ownership: weights and kernels must outlive the reader.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "memory/buffer.h"
#include "model/model_weights.h"
#include "ops/kernels.h"
#include "protocol/work.h"

namespace zp::engine {

class LogitReader {
 public:
  LogitReader(const model::ModelWeights& weights, ops::Kernels& kernels);

  struct Ask {
    int64_t hidden_row = 0;
    const protocol::RowAsk* row = nullptr;
  };

  // One Row per ask. hidden [rows, model_dim] activation_dtype.
  std::vector<protocol::Row> Read(ops::ConstMatrix hidden, std::span<const Ask> asks);

 private:
  // Everything that is asked of one hidden row, so that its product is computed once.
  struct MergedAsk {
    int64_t hidden_row = 0;
    std::vector<spec::TokenId> columns;  // of all parts, one after the other
    int32_t top_count = 0;               // the largest
    std::vector<std::pair<const protocol::RowAsk*, size_t>>
        parts;  // the asks and their places in the answer

    void Add(const protocol::RowAsk& ask, size_t index);
  };

  void ReadFullRows(ops::ConstMatrix hidden,
                    std::span<const Ask> asks,
                    std::span<size_t> chosen,
                    std::vector<protocol::Row>& rows);
  void ReadChunk(ops::ConstMatrix hidden,
                 std::span<const MergedAsk> chunk,
                 std::vector<protocol::Row>& rows);
  static void Split(const MergedAsk& ask,
                    const ops::LogitAnswer& answer,
                    std::vector<protocol::Row>& rows);

  const model::ModelWeights& weights_;
  ops::Kernels& kernels_;
  memory::Buffer gathered_;  // [chunk, h]: the hidden rows of a chunk, side by side
  memory::Buffer logits_;    // [chunk, vocab] f32
};

// Mean of some rows of `hidden`, summed in f32 in the order given: the pooled hidden state.
std::vector<float> MeanOfRows(ops::ConstMatrix hidden, std::span<const int64_t> rows);

// Whether every number of an answer is finite.
bool IsFinite(const protocol::SequenceResult& result);

}  // namespace zp::engine
