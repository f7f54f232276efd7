#include "cluster/secret.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <array>

namespace zp::cluster {
namespace {

using Digest = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

Digest Hash(std::string_view text) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

}  // namespace

absl::StatusOr<std::string> NewSessionSecret() {
  std::string secret(kSessionSecretBytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(secret.data()), kSessionSecretBytes) != 1) {
    return absl::InternalError("the system gives no random bytes");
  }
  return secret;
}

bool SameSecret(std::string_view left, std::string_view right) {
  const Digest left_digest = Hash(left);
  const Digest right_digest = Hash(right);
  return CRYPTO_memcmp(left_digest.data(), right_digest.data(), left_digest.size()) == 0;
}

}  // namespace zp::cluster
