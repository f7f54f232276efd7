#include "kvcache/block_index.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace zp::kvcache {
namespace {

using protocol::kBlockTokens;

// Uses beyond these do not count: what was popular once leaves after as many turnovers.
constexpr int32_t kMaxUses = 8;

}  // namespace

BlockIndex::BlockIndex(const BlockIndexOptions& options)
    : options_(options), blocks_(options.capacity_blocks) {
  ZP_CHECK(options.capacity_blocks > 0) << options.capacity_blocks;
  ZP_CHECK(options.salt_fraction > 0 && options.salt_fraction <= 1) << options.salt_fraction;
  for (BlockId block = options.capacity_blocks - 1; block >= 0; --block) {
    free_.push_back(block);
  }
}

std::vector<BlockId> BlockIndex::Match(std::string_view salt,
                                       std::span<const spec::TokenId> tokens,
                                       std::span<const protocol::BlockHash> chain) const {
  ZP_CHECK(tokens.size() >= chain.size() * kBlockTokens) << tokens.size();
  std::vector<BlockId> held;
  BlockId parent = kNoBlock;
  for (size_t depth = 0; depth < chain.size(); ++depth) {
    const auto found = by_name_.find(chain[depth]);
    if (found == by_name_.end()) {
      break;
    }
    const Block& block = blocks_[found->second];
    // By induction the parent is the prefix asked for; a first block has its salt to show.
    if (block.state != State::kHeld || block.parent != parent || block.tenant->salt != salt ||
        !std::ranges::equal(block.tokens, tokens.subspan(depth * kBlockTokens, kBlockTokens))) {
      break;
    }
    parent = found->second;
    held.push_back(parent);
  }
  return held;
}

void BlockIndex::Pin(BlockId id) {
  Block& block = blocks_[id];
  ZP_CHECK(block.state != State::kFree) << id;
  RemoveFromOrder(id);
  ++block.pin_count;
  block.use_count = std::min(block.use_count + 1, kMaxUses);
  block.priority = clock_ + block.use_count * (options_.first_block_flops +
                                               block.depth * options_.deeper_block_flops);
  block.last_use = ++use_clock_;
}

void BlockIndex::Unpin(BlockId id) {
  Block& block = blocks_[id];
  ZP_CHECK(block.pin_count > 0) << id;
  --block.pin_count;
  AddToOrder(id);
}

void BlockIndex::Await(const protocol::AwaitedChanges& changes) {
  for (const protocol::BlockHash& name : changes.begun) {
    SetAwaited(name, ++awaited_[name]);
  }
  for (const protocol::BlockHash& name : changes.ended) {
    const auto found = awaited_.find(name);
    ZP_CHECK(found != awaited_.end()) << "nobody awaits it";
    SetAwaited(name, --found->second);
    if (found->second == 0) {
      awaited_.erase(found);
    }
  }
}

void BlockIndex::SetAwaited(const protocol::BlockHash& name, int32_t count) {
  if (const auto found = by_name_.find(name); found != by_name_.end()) {
    RemoveFromOrder(found->second);
    blocks_[found->second].await_count = count;
    AddToOrder(found->second);
  }
}

BlockId BlockIndex::Reserve(const NewBlock& wanted, bool may_evict) {
  ZP_CHECK(wanted.tokens.size() == kBlockTokens) << wanted.tokens.size();
  if (by_name_.contains(wanted.name)) {
    return kNoBlock;
  }
  Tenant& tenant = tenants_[std::string(wanted.salt)];
  tenant.salt = wanted.salt;
  ++tenant.block_count;  // first of all: a tenant with blocks stays, whatever goes to make room
  if (!MakeRoomFor(tenant, may_evict)) {
    LeaveTenant(tenant);
    return kNoBlock;
  }
  const BlockId id = free_.back();
  free_.pop_back();
  Block& block = blocks_[id];
  block.state = State::kReserved;
  block.name = wanted.name;
  const auto awaited = awaited_.find(wanted.name);
  block.await_count = awaited == awaited_.end() ? 0 : awaited->second;
  block.parent = wanted.parent;
  block.tenant = &tenant;
  std::ranges::copy(wanted.tokens, block.tokens);
  if (wanted.parent != kNoBlock) {
    Block& parent = blocks_[wanted.parent];
    ZP_CHECK(parent.pin_count > 0 && parent.tenant == &tenant) << wanted.parent;
    ++parent.child_count;
    block.depth = parent.depth + 1;
  }
  by_name_[wanted.name] = id;
  Pin(id);
  return id;
}

void BlockIndex::Publish(BlockId id) {
  Block& block = blocks_[id];
  ZP_CHECK(block.state == State::kReserved) << id;
  ZP_CHECK(block.parent == kNoBlock || blocks_[block.parent].state == State::kHeld) << id;
  RemoveFromOrder(id);
  block.state = State::kHeld;
  AddToOrder(id);
  ++held_blocks_;
  events_.stored.push_back(block.name);
}

void BlockIndex::Drop(BlockId id) {
  ZP_CHECK(blocks_[id].state == State::kReserved) << id;
  Free(id);
}

protocol::CacheEvents BlockIndex::TakeEvents() { return std::exchange(events_, {}); }

BlockIndex::EvictionKey BlockIndex::KeyOf(BlockId block) const {
  const Block& key = blocks_[block];
  return {key.await_count, key.priority, key.last_use, block};
}

bool BlockIndex::IsEvictable(const Block& block) {
  return block.state == State::kHeld && block.pin_count == 0 && block.child_count == 0;
}

void BlockIndex::RemoveFromOrder(BlockId id) {
  if (IsEvictable(blocks_[id])) {
    evictable_.erase(KeyOf(id));
    blocks_[id].tenant->evictable.erase(KeyOf(id));
  }
}

void BlockIndex::AddToOrder(BlockId id) {
  if (IsEvictable(blocks_[id])) {
    evictable_.insert(KeyOf(id));
    blocks_[id].tenant->evictable.insert(KeyOf(id));
  }
}

// Whether there is a free block for one more of `tenant`, which counts it already.
bool BlockIndex::MakeRoomFor(const Tenant& tenant, bool may_evict) {
  const bool is_within_limit = tenant.block_count <= LimitOf(tenant);
  if (is_within_limit && !free_.empty()) {
    return true;
  }
  const std::set<EvictionKey>& order = is_within_limit ? evictable_ : tenant.evictable;
  if (!may_evict || order.empty()) {
    return false;
  }
  Evict(std::get<BlockId>(*order.begin()));
  return true;
}

int32_t BlockIndex::LimitOf(const Tenant& tenant) const {
  const double fraction = tenant.salt.empty() ? 1.0 : options_.salt_fraction;
  return std::max(1, static_cast<int32_t>(fraction * capacity_blocks()));
}

void BlockIndex::Evict(BlockId id) {
  clock_ = std::max(clock_, blocks_[id].priority);
  events_.removed.push_back(blocks_[id].name);
  --held_blocks_;
  ++eviction_count_;
  Free(id);
}

void BlockIndex::Free(BlockId id) {
  RemoveFromOrder(id);
  Block& block = blocks_[id];
  ZP_CHECK(block.child_count == 0) << id;
  by_name_.erase(block.name);
  if (block.parent != kNoBlock) {
    --blocks_[block.parent].child_count;
    AddToOrder(block.parent);
  }
  LeaveTenant(*block.tenant);
  block = Block();
  free_.push_back(id);
}

void BlockIndex::LeaveTenant(Tenant& tenant) {
  if (--tenant.block_count == 0) {
    tenants_.erase(std::string(tenant.salt));  // a copy: the key must outlive the look-up
  }
}

}  // namespace zp::kvcache
