// What tests of this room and of those above share: a certificate.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <string>

#include "base/check.h"
#include "fmt/format.h"

namespace zp::cluster {

// A directory with a certificate for 127.0.0.1 that signed itself, and its key.
class SelfSigned {
 public:
  SelfSigned()
      : directory_(std::filesystem::temp_directory_path() /
                   fmt::format("zp_self_signed_{}_{}", getpid(), next_++)) {
    std::filesystem::create_directories(directory_);
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME* name = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(
        name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("coordinator"), -1, -1, 0);
    X509_set_issuer_name(certificate, name);
    X509_EXTENSION* address =
        X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "IP:127.0.0.1");
    X509_add_ext(certificate, address, -1);
    X509_EXTENSION_free(address);
    ZP_CHECK(X509_sign(certificate, key, EVP_sha256()) > 0);
    Write(certificate_file(), [&](FILE* file) { return PEM_write_X509(file, certificate); });
    Write(key_file(), [&](FILE* file) {
      return PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
    });
    X509_free(certificate);
    EVP_PKEY_free(key);
  }
  ~SelfSigned() { std::filesystem::remove_all(directory_); }

  std::string certificate_file() const { return directory_ / "certificate.pem"; }
  std::string key_file() const { return directory_ / "key.pem"; }

 private:
  template <typename Function>
  static void Write(const std::string& path, const Function& write) {
    FILE* file = fopen(path.c_str(), "w");
    ZP_CHECK(file != nullptr) << path;
    ZP_CHECK(write(file) == 1) << path;
    fclose(file);
  }

  inline static std::atomic<int> next_ = 0;

  std::filesystem::path directory_;
};

}  // namespace zp::cluster
