#include "ops/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/bfloat16.h"
#include "base/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/reference/reference_attention.h"

namespace zp::ops::cpu {
namespace {

using base::BFloat16;
using spec::DType;

// A matrix that owns its memory.
class Owned {
 public:
  Owned(int64_t rows, int64_t cols, DType dtype)
      : data_(rows * cols * spec::SizeOf(dtype) + 64),
        view_{data_.data(), dtype, rows, cols, cols} {}

  Matrix view() { return view_; }
  ConstMatrix view() const { return view_; }
  float At(int64_t row, int64_t col) const {
    return view_.dtype == DType::kF32 ? view_.row<float>(row)[col]
                                      : static_cast<float>(view_.row<BFloat16>(row)[col]);
  }
  void Set(int64_t row, int64_t col, float value) {
    if (view_.dtype == DType::kF32) {
      view_.row<float>(row)[col] = value;
    } else {
      view_.row<BFloat16>(row)[col] = BFloat16(value);
    }
  }
  void FillNormal(std::mt19937& random, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    for (int64_t row = 0; row < view_.rows; ++row) {
      for (int64_t col = 0; col < view_.cols; ++col) {
        Set(row, col, normal(random));
      }
    }
  }
  // The same numbers in f32, or their absolute values.
  Owned Wide(bool absolute = false) const {
    Owned wide(view_.rows, view_.cols, DType::kF32);
    for (int64_t row = 0; row < view_.rows; ++row) {
      for (int64_t col = 0; col < view_.cols; ++col) {
        wide.Set(row, col, absolute ? std::abs(At(row, col)) : At(row, col));
      }
    }
    return wide;
  }
  bool RowEquals(int64_t row, const Owned& other, int64_t other_row) const {
    return std::memcmp(view_.row<std::byte>(0) + row * RowBytes(),
                       other.view_.row<std::byte>(0) + other_row * RowBytes(),
                       RowBytes()) == 0;
  }

 private:
  int64_t RowBytes() const { return view_.cols * static_cast<int64_t>(spec::SizeOf(view_.dtype)); }

  std::vector<std::byte> data_;
  Matrix view_;
};

// Block memory, at first full of huge numbers: what nobody wrote must not matter.
class Blocks {
 public:
  Blocks(int count, size_t block_bytes)
      : buffer_(std::max<size_t>(1, count * block_bytes), "test blocks") {
    std::memset(buffer_.data(), 0x7f, buffer_.size_bytes());
    for (int i = 0; i < count; ++i) {
      pointers_.push_back(buffer_.data() + i * block_bytes);
    }
  }
  KvBlocks view() const { return {pointers_}; }

 private:
  memory::Buffer buffer_;
  std::vector<std::byte*> pointers_;
};

// Sequences that share prefixes of any length: whole blocks are shared, the block in which a shared
// prefix ends is written again for the sequence that goes on.
struct Trie {
  struct Sequence {
    std::vector<int64_t> rows;  // by position
    std::vector<KvBlockId> path;
    int32_t shared_count = 0;  // positions computed by an ancestor
  };
  std::vector<Sequence> sequences;
  std::vector<KvWrite> writes;
  int64_t row_count = 0;
  int block_count = 0;

  void Add(const Sequence* parent, int32_t shared_count, int32_t own_count) {
    Sequence sequence;
    sequence.shared_count = shared_count;
    for (int32_t i = 0; i < shared_count; ++i) {
      sequence.rows.push_back(parent->rows[i]);
    }
    for (int32_t i = 0; i < own_count; ++i) {
      sequence.rows.push_back(row_count++);
    }
    for (int32_t i = 0; i < shared_count / kKvBlockTokens; ++i) {
      sequence.path.push_back(parent->path[i]);
    }
    const size_t own_begin = sequence.path.size() * kKvBlockTokens;
    for (size_t position = own_begin; position < sequence.rows.size(); ++position) {
      if (position % kKvBlockTokens == 0) {
        sequence.path.push_back(block_count++);
      }
      writes.push_back({sequence.rows[position],
                        sequence.path.back(),
                        static_cast<int32_t>(position % kKvBlockTokens)});
    }
    sequences.push_back(std::move(sequence));
  }

  std::vector<AttentionSegment> Segments() const {
    std::vector<AttentionSegment> segments;
    for (const Sequence& sequence : sequences) {
      const auto own_count = static_cast<int32_t>(sequence.rows.size()) - sequence.shared_count;
      segments.push_back(
          {sequence.rows[sequence.shared_count], own_count, sequence.shared_count, sequence.path});
    }
    return segments;
  }

  std::vector<AttentionSegment> SingleRowSegments() const {
    std::vector<AttentionSegment> singles;
    for (const AttentionSegment& segment : Segments()) {
      for (int32_t i = 0; i < segment.row_count; ++i) {
        singles.push_back({segment.row_begin + i, 1, segment.position_begin + i, segment.path});
      }
    }
    return singles;
  }
};

Trie RandomTrie(std::mt19937& random, int sequence_count, int max_own_count) {
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  Trie trie;
  trie.Add(nullptr, 0, pick(1, max_own_count));
  while (static_cast<int>(trie.sequences.size()) < sequence_count) {
    const Trie::Sequence parent =
        trie.sequences[pick(0, static_cast<int>(trie.sequences.size()) - 1)];
    const int shared = pick(0, 9) == 0 ? 0 : pick(0, static_cast<int>(parent.rows.size()));
    const int own = pick(0, 2) == 0 ? pick(1, max_own_count) : pick(1, 12);
    trie.Add(&parent, shared, own);
  }
  if (pick(0, 1) == 0) {
    std::shuffle(trie.writes.begin(), trie.writes.end(), random);
  }
  return trie;
}

struct Inputs {
  Owned q, k, v;
  Inputs(const AttentionShape& shape, int64_t rows, DType dtype, std::mt19937& random)
      : q(rows, int64_t{shape.query_head_count} * shape.head_dim, dtype),
        k(rows, int64_t{shape.kv_head_count} * shape.head_dim, dtype),
        v(rows, int64_t{shape.kv_head_count} * shape.head_dim, dtype) {
    q.FillNormal(random, 1.5f);
    k.FillNormal(random, 1.5f);
    v.FillNormal(random, 1.0f);
  }
};

Owned Compute(Attention& attention,
              const Inputs& inputs,
              const AttentionShape& shape,
              std::span<const KvWrite> writes,
              int block_count,
              std::span<const AttentionSegment> segments) {
  const Blocks blocks(block_count, attention.kv_block_bytes(shape));
  attention.WriteKv(inputs.k.view(), inputs.v.view(), writes, shape, blocks.view());
  Owned out(inputs.q.view().rows, inputs.q.view().cols, inputs.q.view().dtype);
  attention.Attend(inputs.q.view(), segments, shape, blocks.view(), out.view());
  return out;
}

Owned ReferenceResult(const Inputs& inputs,
                      const AttentionShape& shape,
                      const Trie& trie,
                      bool absolute) {
  const Owned q = inputs.q.Wide();
  const Owned k = inputs.k.Wide();
  const Owned v = inputs.v.Wide(absolute);
  const Blocks blocks(trie.block_count, reference::KvBlockBytes(shape));
  reference::WriteKv(k.view(), v.view(), trie.writes, shape, blocks.view());
  Owned out(q.view().rows, q.view().cols, DType::kF32);
  reference::Attend(q.view(), trie.Segments(), shape, blocks.view(), out.view());
  return out;
}

AttentionShape MakeShape(int query_heads, int kv_heads, int head_dim) {
  return {query_heads, kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

struct Case {
  DType dtype;
  AttentionShape shape;
};

class AttentionTest : public testing::TestWithParam<Case> {};

// Every weight of the bf16 path is rounded to 8 bits (2^-8 relative) and so is the result; scores
// and sums in f32 add some 1e-5 of the weights at the sizes tried here. A = sum of weight * |v|
// bounds the result, so |error| <= 2 * 2^-8 * A + 1e-4 * A; without the rounding, 1e-4 * A.
TEST_P(AttentionTest, EqualsTheReferenceOnRandomTries) {
  const auto& [dtype, shape] = GetParam();
  std::mt19937 random(11);
  base::ThreadPool pool(2);
  Attention attention(dtype, pool);
  for (int round = 0; round < 6; ++round) {
    const Trie trie = RandomTrie(random, 8, round == 0 ? 700 : 60);
    const Inputs inputs(shape, trie.row_count, dtype, random);
    const Owned out =
        Compute(attention, inputs, shape, trie.writes, trie.block_count, trie.Segments());
    const Owned expected = ReferenceResult(inputs, shape, trie, /*absolute=*/false);
    const Owned bound = ReferenceResult(inputs, shape, trie, /*absolute=*/true);
    const float tolerance = (dtype == DType::kBf16 ? std::ldexp(1.0f, -7) : 0.0f) + 1e-4f;
    for (int64_t row = 0; row < trie.row_count; ++row) {
      for (int64_t col = 0; col < out.view().cols; ++col) {
        ASSERT_NEAR(out.At(row, col), expected.At(row, col), tolerance * bound.At(row, col))
            << "round " << round << " row " << row << " column " << col;
      }
    }
  }
}

TEST_P(AttentionTest, GivesBitEqualRowsAloneAndInAnyCompany) {
  const auto& [dtype, shape] = GetParam();
  std::mt19937 random(12);
  base::ThreadPool one_thread(1);
  base::ThreadPool two_threads(2);
  Attention alone(dtype, one_thread);
  Attention crowd(dtype, two_threads);
  for (int round = 0; round < 5; ++round) {
    const Trie trie = RandomTrie(random, 10, round == 0 ? 600 : 80);
    const Inputs inputs(shape, trie.row_count, dtype, random);
    const Owned shared =
        Compute(crowd, inputs, shape, trie.writes, trie.block_count, trie.Segments());
    const Owned one = Compute(alone, inputs, shape, trie.writes, trie.block_count, trie.Segments());
    std::vector<AttentionSegment> singles = trie.SingleRowSegments();
    std::shuffle(singles.begin(), singles.end(), random);
    const Owned single = Compute(crowd, inputs, shape, trie.writes, trie.block_count, singles);
    for (int64_t row = 0; row < trie.row_count; ++row) {
      ASSERT_TRUE(one.RowEquals(row, shared, row)) << "one thread, row " << row;
      ASSERT_TRUE(single.RowEquals(row, shared, row)) << "a segment of its own, row " << row;
    }
    for (const Trie::Sequence& sequence : trie.sequences) {
      // The sequence computed alone from its first token, its rows in a matrix of their own.
      Trie flat;
      flat.Add(nullptr, 0, static_cast<int32_t>(sequence.rows.size()));
      Inputs own(shape, flat.row_count, dtype, random);
      const auto copy = [&](const Owned& from, Owned& to) {
        for (int64_t row = 0; row < flat.row_count; ++row) {
          for (int64_t col = 0; col < from.view().cols; ++col) {
            to.Set(row, col, from.At(sequence.rows[row], col));
          }
        }
      };
      copy(inputs.q, own.q);
      copy(inputs.k, own.k);
      copy(inputs.v, own.v);
      const Owned out = Compute(alone, own, shape, flat.writes, flat.block_count, flat.Segments());
      for (int64_t row = 0; row < flat.row_count; ++row) {
        ASSERT_TRUE(out.RowEquals(row, shared, sequence.rows[row])) << "unshared, row " << row;
      }
    }
  }
}

// A value that is not finite reaches the rows that see it and no other, not even through a weight
// of 0.
TEST_P(AttentionTest, KeepsNaNAwayFromRowsThatDoNotSeeIt) {
  const auto& [dtype, shape] = GetParam();
  std::mt19937 random(13);
  base::ThreadPool pool(2);
  Attention attention(dtype, pool);
  Trie trie;
  trie.Add(nullptr, 0, 40);
  const int64_t bad_row = 21;
  Inputs inputs(shape, trie.row_count, dtype, random);
  const Owned good =
      Compute(attention, inputs, shape, trie.writes, trie.block_count, trie.Segments());
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (Owned* source : {&inputs.k, &inputs.v}) {
      const float saved = source->At(bad_row, 1);
      source->Set(bad_row, 1, bad);
      const Owned out =
          Compute(attention, inputs, shape, trie.writes, trie.block_count, trie.Segments());
      source->Set(bad_row, 1, saved);
      for (int64_t row = 0; row < bad_row; ++row) {
        ASSERT_TRUE(out.RowEquals(row, good, row)) << row;
      }
      ASSERT_TRUE(std::isnan(out.At(bad_row, 0)));
      ASSERT_TRUE(std::isnan(out.At(trie.row_count - 1, 0)));
    }
  }
}

TEST_P(AttentionTest, TakesRowsWithAStride) {
  const auto& [dtype, shape] = GetParam();
  std::mt19937 random(14);
  base::ThreadPool pool(1);
  Attention attention(dtype, pool);
  Trie trie;
  trie.Add(nullptr, 0, 19);
  const Inputs inputs(shape, trie.row_count, dtype, random);
  const Owned expected =
      Compute(attention, inputs, shape, trie.writes, trie.block_count, trie.Segments());
  // q, k, v and out side by side in one wide matrix.
  const int64_t q_cols = inputs.q.view().cols;
  const int64_t kv_cols = inputs.k.view().cols;
  Owned wide(trie.row_count, 2 * q_cols + 2 * kv_cols, dtype);
  const Matrix q = wide.view().Columns(0, q_cols);
  const Matrix k = wide.view().Columns(q_cols, kv_cols);
  const Matrix v = wide.view().Columns(q_cols + kv_cols, kv_cols);
  const Matrix out = wide.view().Columns(q_cols + 2 * kv_cols, q_cols);
  for (int64_t row = 0; row < trie.row_count; ++row) {
    for (int64_t col = 0; col < q_cols; ++col) {
      wide.Set(row, col, inputs.q.At(row, col));
    }
    for (int64_t col = 0; col < kv_cols; ++col) {
      wide.Set(row, q_cols + col, inputs.k.At(row, col));
      wide.Set(row, q_cols + kv_cols + col, inputs.v.At(row, col));
    }
  }
  const Blocks blocks(trie.block_count, attention.kv_block_bytes(shape));
  attention.WriteKv(k, v, trie.writes, shape, blocks.view());
  attention.Attend(q, trie.Segments(), shape, blocks.view(), out);
  for (int64_t row = 0; row < trie.row_count; ++row) {
    for (int64_t col = 0; col < q_cols; ++col) {
      ASSERT_EQ(wide.At(row, q_cols + 2 * kv_cols + col), expected.At(row, col));
    }
  }
}

TEST_P(AttentionTest, DoesNothingWithoutSegments) {
  const auto& [dtype, shape] = GetParam();
  base::ThreadPool pool(2);
  Attention attention(dtype, pool);
  const Owned empty(0, 0, dtype);
  attention.WriteKv(empty.view(), empty.view(), {}, shape, {});
  attention.Attend(empty.view(), {}, shape, {}, Owned(0, 0, dtype).view());
}

std::string NameOfCase(const testing::TestParamInfo<Case>& info) {
  const auto& [dtype, shape] = info.param;
  return std::string(NameOf(dtype)) + "_" + std::to_string(shape.query_head_count) + "to" +
         std::to_string(shape.kv_head_count) + "x" + std::to_string(shape.head_dim);
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    for (const AttentionShape& shape : {MakeShape(8, 1, 128),
                                        MakeShape(16, 4, 64),
                                        MakeShape(7, 1, 40),
                                        MakeShape(3, 3, 24),
                                        MakeShape(4, 2, 80),
                                        MakeShape(2, 1, 256),
                                        MakeShape(33, 1, 16),
                                        MakeShape(6, 2, 2)}) {
      cases.push_back({dtype, shape});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest, testing::ValuesIn(Cases()), NameOfCase);

}  // namespace
}  // namespace zp::ops::cpu
