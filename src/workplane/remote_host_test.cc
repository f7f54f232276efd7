// Worker and gateway together, when all goes well and when one refuses the other.

#include "workplane/remote_host.h"

#include "cluster/testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "workplane/loopback_testing.h"
#include "workplane/wire.h"

namespace zp::workplane {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasSubstr;

void ExpectAnswered(const absl::StatusOr<protocol::WorkResult>& result,
                    const protocol::Work& work) {
  ASSERT_TRUE(result.ok()) << result.status();
  const protocol::WorkResult expected = AnswerTo(work);
  EXPECT_EQ(result->usage.prompt_tokens, expected.usage.prompt_tokens);
  ASSERT_EQ(result->sequences.size(), expected.sequences.size());
  for (size_t i = 0; i < expected.sequences.size(); ++i) {
    EXPECT_EQ(result->sequences[i].pooled, expected.sequences[i].pooled);
    for (size_t j = 0; j < expected.sequences[i].rows.size(); ++j) {
      EXPECT_EQ(result->sequences[i].rows[j].column_logits,
                expected.sequences[i].rows[j].column_logits);
      EXPECT_EQ(result->sequences[i].rows[j].log_sum_exp,
                expected.sequences[i].rows[j].log_sum_exp);
    }
  }
}

protocol::Work WorkOf(int32_t token) {
  protocol::Work work;
  work.request_id = "r";
  work.sequences.emplace_back().tokens = {token};
  work.sequences[0].pooling = protocol::Pooling::kMean;
  return work;
}

TEST(RemoteHost, ManyWorksComeBackAnswered) {
  Worker worker(3);
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  EXPECT_EQ(gateway.rank_count(), 3);
  Random random(1);
  std::vector<protocol::Work> works;
  std::vector<Outcome> outcomes(500);
  for (size_t i = 0; i < outcomes.size(); ++i) {
    works.push_back(RandomWork(random));
    protocol::WorkSink& rank = gateway.rank(static_cast<int32_t>(i % 3));
    ASSERT_TRUE(rank.Submit(works[i], {}, outcomes[i].Done()).ok());
  }
  for (size_t i = 0; i < outcomes.size(); ++i) {
    ExpectAnswered(outcomes[i].Wait(), works[i]);
  }
  EXPECT_EQ(worker.rank(1).brought_count(), 167u);
}

TEST(RemoteHost, WhatTheRankSaysComesBackAsItIs) {
  absl::Status busy = absl::ResourceExhaustedError("the queue is full");
  busy.SetPayload(protocol::kRetrySecondsPayload, absl::Cord("9"));
  Worker worker(1, [&](const protocol::Work&) { return busy; });
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  EXPECT_EQ(outcome.WaitForStatus(), busy);
}

TEST(RemoteHost, AnAnswerOfAnotherShapeIsAnError) {
  Worker worker(1, [](const protocol::Work&) { return protocol::WorkResult(); });
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  EXPECT_TRUE(absl::IsInternal(outcome.WaitForStatus()));
  EXPECT_THAT(base::MessageOf(outcome.WaitForStatus()), HasSubstr("host 3"));
}

TEST(RemoteHost, WhatCannotTravelIsRefusedByName) {
  Worker worker;
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  protocol::Work work = WorkOf(1);
  work.request_id = std::string(kMaxRequestIdBytes + 1, 'a');
  const absl::Status status = gateway.rank().Submit(work, {}, [](const auto&) { FAIL(); });
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(base::MessageOf(status), HasSubstr("request_id"));
  EXPECT_TRUE(absl::IsUnavailable(gateway.rank(1).Submit(WorkOf(1), {}, [](const auto&) {
    FAIL();
  }))) << "there is no rank 1";
}

TEST(RemoteHost, AClientThatLeavesCancelsItsWork) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  std::stop_source leaves;
  Outcome left;
  Outcome stayed;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), leaves.get_token(), left.Done()).ok());
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(2), {}, stayed.Done()).ok());
  worker.rank().WaitForBrought(2);
  leaves.request_stop();
  worker.rank().WaitForCancelled(1);
  worker.rank().Release();
  EXPECT_TRUE(absl::IsCancelled(left.WaitForStatus()));
  ExpectAnswered(stayed.Wait(), WorkOf(2));
}

TEST(RemoteHost, AWorkThatNobodyWaitsForIsNotSent) {
  Worker worker;
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  std::stop_source left;
  left.request_stop();
  Outcome cancelled;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), left.get_token(), cancelled.Done()).ok());
  EXPECT_TRUE(absl::IsCancelled(cancelled.WaitForStatus()));
  protocol::Work late = WorkOf(1);
  late.deadline = steady_clock::now() - milliseconds(1);
  Outcome missed;
  ASSERT_TRUE(gateway.rank().Submit(late, {}, missed.Done()).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(missed.WaitForStatus()));
  EXPECT_EQ(worker.rank().brought_count(), 0u);
}

TEST(RemoteHost, ADeadlineTravels) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  protocol::Work work = WorkOf(1);
  work.deadline = steady_clock::now() + std::chrono::hours(1);
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(work, {}, outcome.Done()).ok());
  worker.rank().WaitForBrought(1);
  const auto arrived = worker.rank().front().deadline;
  ASSERT_TRUE(arrived.has_value());
  EXPECT_GE(*arrived, *work.deadline) << "what is left is rounded up";
  EXPECT_LT(*arrived, steady_clock::now() + std::chrono::hours(1) + milliseconds(1));
  worker.rank().Release();
  outcome.Wait();
}

TEST(RemoteHost, AGatewayThatComesLateLearnsWhatTheRanksHold) {
  Worker worker(2);
  worker.board().OnReport(1, ReportOf(7, {}, {Block(1), Block(2)}));
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitForHeld(1, {1, 2});
  EXPECT_EQ(gateway.flops_per_s(1), 7);
  worker.board().OnReport(1, ReportOf(8, {Block(1)}, {Block(3)}));
  gateway.WaitForHeld(1, {2, 3});
  Gateway later;
  later.Connect(worker.address());
  later.WaitForHeld(1, {2, 3});
}

TEST(RemoteHost, TheReportOfAPassComesBeforeItsAnswers) {
  Worker* at_work = nullptr;
  Worker worker(1, [&](const protocol::Work& work) {
    const auto number = static_cast<uint64_t>(work.sequences[0].tokens[0]);
    at_work->board().OnReport(0, ReportOf(static_cast<double>(number), {}, {}));
    return AnswerTo(work);
  });
  at_work = &worker;
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  for (int32_t number = 1; number <= 100; ++number) {
    Outcome outcome;
    ASSERT_TRUE(gateway.rank().Submit(WorkOf(number), {}, outcome.Done()).ok());
    outcome.Wait();
    EXPECT_EQ(gateway.flops_per_s(0), number);
  }
}

TEST(RemoteHost, TwoGatewaysAtOnceGetTheirOwnAnswers) {
  Worker worker;
  worker.Start();
  std::vector<Gateway> gateways(2);
  for (Gateway& gateway : gateways) {
    gateway.Connect(worker.address());
    gateway.WaitUp();
  }
  std::vector<Outcome> outcomes(200);
  for (size_t i = 0; i < outcomes.size(); ++i) {
    ASSERT_TRUE(gateways[i % 2]
                    .rank()
                    .Submit(WorkOf(static_cast<int32_t>(i)), {}, outcomes[i].Done())
                    .ok());
  }
  for (size_t i = 0; i < outcomes.size(); ++i) {
    ExpectAnswered(outcomes[i].Wait(), WorkOf(static_cast<int32_t>(i)));
  }
}

TEST(RemoteHost, AWrongTokenAndAnotherModelAreRefused) {
  Worker worker;
  worker.Start();
  Gateway stranger;
  stranger.options.join_token = "a token of somebody else";
  stranger.Connect(worker.address());
  stranger.WaitForComplaint("join token");
  Gateway other;
  other.options.model_fingerprint = "mixtral/avx2";
  other.Connect(worker.address());
  EXPECT_THAT(other.WaitForComplaint("mixtral/avx2"), HasSubstr(kModel));
  EXPECT_TRUE(absl::IsUnavailable(other.rank().Submit(WorkOf(1), {}, [](const auto&) { FAIL(); })));
}

TEST(RemoteHost, SpeaksTlsAndOnlyTls) {
  const cluster::SelfSigned self_signed;
  Worker worker;
  worker.options.tls_certificate_file = self_signed.certificate_file();
  worker.options.tls_key_file = self_signed.key_file();
  worker.Start();
  Gateway gateway;
  gateway.options.tls_root_certificates_file = self_signed.certificate_file();
  gateway.Connect(worker.address());
  gateway.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  ExpectAnswered(outcome.Wait(), WorkOf(1));
  Gateway plain;
  plain.Connect(worker.address());
  plain.WaitForComplaint("without TLS");
  EXPECT_TRUE(absl::IsUnavailable(plain.host().status()));
}

// Who is not whom the gateway trusts gets no work, and costs it nothing but the attempts.
TEST(RemoteHost, AWorkerThatShowsAnothersCertificateIsRefused) {
  const cluster::SelfSigned trusted;
  const cluster::SelfSigned stranger;
  Worker worker;
  worker.options.tls_certificate_file = stranger.certificate_file();
  worker.options.tls_key_file = stranger.key_file();
  worker.Start();
  Gateway gateway;
  gateway.options.tls_root_certificates_file = trusted.certificate_file();
  gateway.Connect(worker.address());
  gateway.WaitForComplaint("certificate");
  EXPECT_TRUE(
      absl::IsUnavailable(gateway.rank().Submit(WorkOf(1), {}, [](const auto&) { FAIL(); })));
  EXPECT_EQ(worker.rank().brought_count(), 0u);
}

TEST(RemoteHost, AGatewayThatWantsTlsSpeaksToNoPortWithoutIt) {
  const cluster::SelfSigned trusted;
  Worker worker;
  worker.Start();
  Gateway gateway;
  gateway.options.tls_root_certificates_file = trusted.certificate_file();
  gateway.Connect(worker.address());
  gateway.WaitForComplaint("with TLS");
  Gateway plain;
  plain.Connect(worker.address());
  plain.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(plain.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  ExpectAnswered(outcome.Wait(), WorkOf(1));
}

TEST(RemoteHost, PlainTextStaysOnPrivateNetworks) {
  Worker worker;
  worker.options.address = "0.0.0.0";
  EXPECT_TRUE(absl::IsPermissionDenied(
      WorkServer::Start(worker.options, {&worker.rank()}, worker.board()).status()));
  Gateway gateway;
  gateway.Connect("8.8.8.8:1");
  gateway.WaitForComplaint("needs TLS");
}

TEST(RemoteHost, FollowsItsWorkerToAnotherAddress) {
  Worker first;
  first.Start();
  Worker second;
  second.Start();
  Gateway gateway;
  gateway.Connect(first.address());
  gateway.WaitUp();
  gateway.host().SetAddress("");
  Outcome still;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, still.Done()).ok()) << "it ends in peace";
  ExpectAnswered(still.Wait(), WorkOf(1));
  gateway.host().SetAddress(second.address());
  EXPECT_THAT(gateway.WaitDown(), HasSubstr(second.address()));
  gateway.WaitUp(2);
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(2), {}, outcome.Done()).ok());
  ExpectAnswered(outcome.Wait(), WorkOf(2));
  EXPECT_EQ(second.rank().brought_count(), 1u);
}

TEST(RemoteHost, AWorkerThatEndsInOrderAnswersWhatItHas) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  worker.rank().WaitForBrought(1);
  EXPECT_FALSE(worker.server().Drain(steady_clock::now())) << "a work is still there";
  EXPECT_THAT(gateway.WaitDown(), HasSubstr("ending"));
  EXPECT_TRUE(
      absl::IsUnavailable(gateway.rank().Submit(WorkOf(2), {}, [](const auto&) { FAIL(); })));
  worker.rank().Release();
  EXPECT_TRUE(worker.server().Drain(steady_clock::now() + std::chrono::minutes(1)));
  worker.Kill();
  ExpectAnswered(outcome.Wait(), WorkOf(1));
}

TEST(RemoteHost, MoreThanMayBeOnItsWayIsRefused) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  Gateway gateway;
  gateway.options.max_unanswered_works = 3;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  std::vector<Outcome> outcomes(3);
  for (Outcome& outcome : outcomes) {
    ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  }
  const absl::Status full = gateway.rank().Submit(WorkOf(1), {}, [](const auto&) { FAIL(); });
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_EQ(full.GetPayload(protocol::kRetrySecondsPayload), absl::Cord("1"));
  worker.rank().Release();
  for (Outcome& outcome : outcomes) {
    EXPECT_TRUE(outcome.Wait().ok());
  }
}

TEST(RemoteHost, AfterStopNothingIsTaken) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  gateway.Stop();
  EXPECT_TRUE(absl::IsUnavailable(outcome.WaitForStatus()));
  EXPECT_TRUE(
      absl::IsUnavailable(gateway.rank().Submit(WorkOf(1), {}, [](const auto&) { FAIL(); })));
}

}  // namespace
}  // namespace zp::workplane
