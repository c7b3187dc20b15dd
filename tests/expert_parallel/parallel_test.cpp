// SPDX-License-Identifier: MIT
// Experts on several ranks against all of them in one process. Every test runs on all ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "parallel_training.hpp"
#include "words.hpp"

namespace expert_parallel {
namespace {

using train_moe::Batch;
using train_moe::Model;
using train_moe::Sizes;

constexpr Index tokens = 8 * Shares::unit;
constexpr double bias_rate = 0.25, balance_coefficient = 0.1;

Sizes small_sizes() {
  Sizes sizes;
  sizes.tokens = tokens;
  sizes.context = 4;
  sizes.embedding = 8;
  sizes.hidden = 24;
  sizes.layers = 2;
  sizes.experts = 16;
  sizes.top_k = 3;
  sizes.expert_hidden = 12;
  return sizes;
}

Batch whole_batch() {
  const train_moe::Text text(train_moe::words(8 * train_moe::Text::block_bytes));
  return text.training_batch(1, 1, tokens, small_sizes().context);
}

/// Of all shares that are tried; the last one is for four ranks and leaves one without tokens.
std::vector<Shares> shares_of(int ranks) {
  std::vector<Shares> all{Shares(tokens, ranks)};
  if (ranks == 2) all.insert(all.end(), {Shares("64,448", tokens, 2), Shares("0,512", tokens, 2)});
  if (ranks == 4) {
    all.insert(all.end(), {Shares("64,0,320,128", tokens, 4), Shares("0,0,512,0", tokens, 4)});
  }
  return all;
}

template <class T>
bool same_bits(const T* a, const T* b, Index count) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(T)) == 0;
}

template <class A>
double distance(const RowMatrix<A>& a, const RowMatrix<A>& b) {
  return static_cast<double>((a - b).norm() / b.norm());
}

/// A model on the ranks of a communicator.
template <class A>
struct Job {
  Communicator comm;
  Ledger ledger;
  Shares shares;
  Batch part;
  ParallelModel<A> model;

  Job(MPI_Comm ranks, const Shares& shares_, const gatepro::Competition& competition)
      : comm(ranks),
        shares(shares_),
        part(shares.part(whole_batch(), comm.rank())),
        model(sizes(), options(competition), 3, train_moe::make_executor(1)) {
    for (ParallelLayer<A>& layer : model.layers()) layer.gate().value *= 20;  // has opinions
    end_step(model, 1, train_moe::make_executor(1));
  }
  Losses forward() {
    for (Parameter<A>* parameter : model.parameters()) parameter->gradient.setZero();
    model.forward(part);
    return sum_losses(model, tokens, comm);
  }
  void learn() { backward(model, part, tokens, comm, ledger); }

 private:
  Sizes sizes() const {
    Sizes sizes = small_sizes();
    sizes.tokens = part.context_TC.rows();
    return sizes;
  }
  typename ParallelLayer<A>::Options options(const gatepro::Competition& competition) {
    train_moe::Routing routing;
    routing.config.competition = competition;
    routing.config.losses.batch = balance_coefficient;
    routing.config.bias.enabled = true;
    routing.config.bias.update_rate = bias_rate;
    return {routing, comm, ledger};
  }
};

template <class A>
void expect_same_routing(Job<A>& job, Job<A>& alone) {
  const Index first = job.shares.begin(job.comm.rank()), count = job.shares.count(job.comm.rank());
  for (std::size_t l = 0; l < job.model.layers().size(); ++l) {
    ParallelLayer<A>&mine = job.model.layers()[l], &all = alone.model.layers()[l];
    const auto choices = count * small_sizes().top_k;
    EXPECT_TRUE(same_bits(mine.routed().expert_ids_TK().data,
                          all.routed().expert_ids_TK().row(first), choices));
    EXPECT_TRUE(
        same_bits(mine.routed().weights_TK().data, all.routed().weights_TK().row(first), choices));
    EXPECT_TRUE(same_bits(mine.router().bias().values().data, all.router().bias().values().data,
                          small_sizes().experts));
    EXPECT_TRUE(same_bits(mine.router().similarity_cache().partners().data,
                          all.router().similarity_cache().partners().data, small_sizes().experts));
  }
}

void expect_same_losses(const Losses& got, const Losses& want) {
  EXPECT_EQ(got.text, want.text);
  EXPECT_EQ(got.balance, want.balance);
  EXPECT_GT(got.balance, 0);
}

template <class A>
void expect_same_gradients(Job<A>& job, Job<A>& alone) {
  const auto mine = job.model.shared_parameters(), all = alone.model.shared_parameters();
  for (std::size_t i = 0; i < mine.size(); ++i) {  // summed in another order
    EXPECT_LT(distance(mine[i]->gradient, all[i]->gradient), 1e-6) << mine[i]->name;
  }
  const Index each = small_sizes().experts / job.comm.size(), first = job.comm.rank() * each;
  for (std::size_t l = 0; l < job.model.layers().size(); ++l) {
    const auto want = some_experts(alone.model.layers()[l].experts(), first, each);
    auto expected = want;
    ExpertNetworks<A>& got = job.model.layers()[l].experts();
    EXPECT_TRUE(same_bits(got.in().gradient.data(), expected.in().gradient.data(),
                          got.in().gradient.size()));
    EXPECT_TRUE(same_bits(got.out().gradient.data(), expected.out().gradient.data(),
                          got.out().gradient.size()));
    EXPECT_GT(got.out().gradient.norm(), 0);
  }
}

class Competitions : public testing::TestWithParam<gatepro::Competition> {};

// Ids, weights, losses, bias, partners, and the gradients of experts: to the bit. In the second
// round the bias has moved by the loads of the first.
TEST_P(Competitions, HaveTheBitsOfOneProcess) {
  const Communicator world(MPI_COMM_WORLD);
  for (const Shares& shares : shares_of(world.size())) {
    Job<float> job(MPI_COMM_WORLD, shares, GetParam());
    Job<float> alone(MPI_COMM_SELF, Shares(tokens, 1), GetParam());
    for (std::int64_t step = 2; step < 4; ++step) {
      const Losses losses = job.forward();
      expect_same_losses(losses, alone.forward());
      job.learn();
      alone.learn();
      expect_same_gradients(job, alone);
      end_step(job.model, step, train_moe::make_executor(1));
      end_step(alone.model, step, train_moe::make_executor(1));
      expect_same_routing(job, alone);
    }
    for (ParallelLayer<float>& layer : job.model.layers()) {
      double largest = 0;
      for (Index e = 0; e < small_sizes().experts; ++e) {
        largest = std::max(largest, std::abs(double(layer.router().bias().values()[e])));
      }
      EXPECT_GE(largest, bias_rate);
    }
  }
}

// The trainer of one process has other code for dispatch and sums, and is tested by differences.
TEST_P(Competitions, AgreeWithTheTrainerOfOneProcess) {
  const Communicator world(MPI_COMM_WORLD);
  Job<double> job(MPI_COMM_WORLD, Shares(tokens, world.size()), GetParam());
  train_moe::Routing routing;
  routing.config.competition = GetParam();
  routing.config.losses.batch = balance_coefficient;
  Model<double> want(small_sizes(), routing, 3, train_moe::make_executor(1));
  for (auto& layer : want.layers()) {
    layer.gate().value *= 20;
    layer.refresh(1, train_moe::make_executor(1));
  }
  const Batch batch = whole_batch();
  const double loss = want.forward(batch);
  const Losses losses = job.forward();
  EXPECT_NEAR(losses.text, loss, 1e-9);
  EXPECT_NEAR(losses.balance, want.auxiliary_loss(), 1e-9);
  want.backward(batch);
  job.learn();
  const auto got = job.model.shared_parameters(), shared = want.shared_parameters();
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_LT(distance(got[i]->gradient, shared[i]->gradient), 1e-12) << got[i]->name;
  }
  const Index each = small_sizes().experts / world.size();
  for (std::size_t l = 0; l < job.model.layers().size(); ++l) {
    ExpertNetworks<double>& mine = job.model.layers()[l].experts();
    const auto part = [&](const Parameter<double>& all) -> RowMatrix<double> {
      const Index rows = all.gradient.rows() / world.size();
      return all.gradient.middleRows(world.rank() * rows, rows);
    };
    EXPECT_LT(distance(mine.in().gradient, part(want.layers()[l].experts().in())), 1e-12);
    EXPECT_LT(distance(mine.out().gradient, part(want.layers()[l].experts().out())), 1e-12);
    EXPECT_EQ(mine.count(), each);
  }
}

INSTANTIATE_TEST_SUITE_P(ExpertParallel, Competitions,
                         testing::Values(gatepro::Competition::off(),
                                         gatepro::Competition::penalty(0.3),
                                         gatepro::Competition::eliminate()));

// Rows reach the expert they name, in the order of ranks and tokens, and come back; all but those
// that stay are counted.
TEST(Exchange, TakesRowsToTheirExpertsAndBack) {
  const Communicator comm(MPI_COMM_WORLD);
  const train_moe::Executor executor = train_moe::make_executor(1);
  const Index experts = 8, each = experts / comm.size(), top_k = 2, hidden = 3;
  const Index count = comm.rank() == 1 ? 0 : 5 + comm.rank();  // rank 1 has none
  RowMatrix<std::int32_t> ids_TK(count, top_k);
  for (Index t = 0; t < count; ++t) {
    ids_TK.row(t) << static_cast<std::int32_t>((3 * t + comm.rank()) % 7), 7;
  }
  Ledger ledger;
  Exchange<float> exchange(comm, ledger, experts, hidden);
  exchange.plan(ids_TK);
  RowMatrix<float> rows_SH(count * top_k, hidden), rows_NH, back_SH;
  Index leave = 0;
  for (Index row = 0; row < rows_SH.rows(); ++row) {
    const Index choice = exchange.choice_of_row_S()[row], token = choice / top_k;
    const std::int32_t expert = ids_TK(token, choice % top_k);
    EXPECT_EQ(exchange.token_of_row_S()[row], token);
    EXPECT_EQ(exchange.row_TK()(token, choice % top_k), row);
    rows_SH.row(row) << static_cast<float>(expert), static_cast<float>(comm.rank()),
        static_cast<float>(token);
    leave += expert / each == comm.rank() ? 0 : 1;
  }
  exchange.to_experts(rows_SH, rows_NH, executor);
  for (Index e = 0; e < each; ++e) {
    for (Index row = exchange.begin_E1()[e]; row < exchange.begin_E1()[e + 1]; ++row) {
      EXPECT_EQ(rows_NH(row, 0), static_cast<float>(comm.rank() * each + e));
      if (row == exchange.begin_E1()[e]) continue;
      const auto place = [&](Index r) { return 1000 * rows_NH(r, 1) + rows_NH(r, 2); };
      EXPECT_LT(place(row - 1), place(row));
    }
  }
  exchange.from_experts(rows_NH, back_SH, executor);
  EXPECT_EQ(back_SH, rows_SH);

  std::int64_t sent = leave * hidden * Index{sizeof(float)};
  std::int64_t received = rows_NH.rows();
  for (Index row = 0; row < rows_NH.rows(); ++row) {
    received -= rows_NH(row, 1) == static_cast<float>(comm.rank()) ? 1 : 0;
  }
  sent += received * hidden * Index{sizeof(float)};
  EXPECT_EQ(ledger.sent(), sent + 8 * (comm.size() - 1) * each);
  std::int64_t all = rows_NH.rows(), made = rows_SH.rows();
  comm.sum()(&all, 1);
  comm.sum()(&made, 1);
  EXPECT_EQ(all, made);
}

TEST(Communicator, OneRanksErrorIsThatOfAll) {
  const Communicator comm(MPI_COMM_WORLD);
  const int last = comm.size() - 1;
  std::string message = "none";
  try {
    comm.together([&] {
      if (comm.rank() == last) throw train_moe::UserError("no disk");
    });
  } catch (const train_moe::UserError& error) {
    message = error.what();
  }
  EXPECT_EQ(message, comm.rank() == last ? "no disk" : "");
  EXPECT_NO_THROW(comm.together([] {}));
  EXPECT_EQ(comm.broadcast(comm.rank() == 0 ? std::string("text\0more", 9) : std::string("x")),
            std::string("text\0more", 9));
}

TEST(Shares, AreWholeUnits) {
  const Shares equal(7 * Shares::unit, 3);
  EXPECT_EQ(equal.begin(0), 0);
  EXPECT_EQ(equal.begin(1), 2 * Shares::unit);
  EXPECT_EQ(equal.begin(2), 4 * Shares::unit);
  EXPECT_EQ(equal.tokens(), 7 * Shares::unit);
  EXPECT_EQ(Shares(Shares::unit, 4).count(2), 0);
  const auto refused = [](const std::function<void()>& make, const std::string& part) {
    try {
      make();
      ADD_FAILURE() << part;
    } catch (const train_moe::UserError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused([] { Shares(100, 2); }, "--tokens is 100");
  refused([] { Shares("64,100", 164, 2); }, "'100'");
  refused([] { Shares("64,x", 128, 2); }, "'x'");
  refused([] { Shares("64,-64", 0, 2); }, "'-64'");
  refused([] { Shares("", 64, 1); }, "''");
  refused([] { Shares("64,64", 128, 3); }, "2 numbers with the sum 128");
  refused([] { Shares("64,64", 192, 2); }, "with the sum 192");
}

// Also where one rank alone sees that they are not.
TEST(Losses, MustBeFiniteOnAllRanks) {
  const Communicator comm(MPI_COMM_WORLD);
  Job<float> job(MPI_COMM_WORLD, Shares(tokens, comm.size()), gatepro::Competition::eliminate());
  if (comm.rank() == comm.size() - 1) {
    job.model.shared_parameters()[0]->value.setConstant(std::nanf(""));
  }
  EXPECT_THROW(job.forward(), train_moe::UserError);
}

}  // namespace
}  // namespace expert_parallel

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  testing::InitGoogleTest(&argc, argv);
  int failed = RUN_ALL_TESTS();
  MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return failed;
}
