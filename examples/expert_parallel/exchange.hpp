// SPDX-License-Identifier: MIT
// Rows from the ranks of the tokens to the ranks of the experts, and back.
#ifndef EXPERT_PARALLEL_EXCHANGE_HPP
#define EXPERT_PARALLEL_EXCHANGE_HPP

#include <cstddef>
#include <cstdint>
#include <gatepro/dispatch.hpp>
#include <vector>

#include "communicator.hpp"
#include "ledger.hpp"
#include "parallel.hpp"

namespace expert_parallel {

using train_moe::Executor;

/// A row of H numbers, so that MPI counts rows and an int is enough.
template <class A>
class RowType {
 public:
  explicit RowType(Index hidden) {
    MPI_Type_contiguous(static_cast<int>(hidden), mpi_type(A()), &type_);
    MPI_Type_commit(&type_);
  }
  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;
  RowType(RowType&& other) noexcept : type_(other.type_) { other.type_ = MPI_DATATYPE_NULL; }
  ~RowType() {
    if (type_ != MPI_DATATYPE_NULL) MPI_Type_free(&type_);
  }
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

/// The way of S = T K rows from here to the experts' ranks, where N rows arrive.
///
/// Rank r of R has the experts [r E / R, (r + 1) E / R).
template <class A>
class Exchange {
 public:
  /// E is a multiple of the number of ranks. `comm` and `ledger` must outlive it.
  Exchange(const Communicator& comm, Ledger& ledger, Index experts, Index hidden)
      : comm_(comm),
        ledger_(ledger),
        row_type_(hidden),
        hidden_(hidden),
        experts_(experts),
        count_E_(size(experts)),
        count_SE_(size(experts)),
        begin_E1_(size(experts / comm.size() + 1)),
        send_(size(comm.size())),
        receive_(size(comm.size())),
        scratch_(gatepro::plan_dispatch_workspace_bytes(experts)) {}

  /// Follows a routing: all ranks together.
  void plan(gatepro::MatrixView<const std::int32_t> expert_ids_TK) {
    row_TK_.resize(expert_ids_TK.rows, expert_ids_TK.cols);
    token_of_row_S_.resize(size(row_TK_.size()));
    choice_of_row_S_.resize(size(row_TK_.size()));
    gatepro::DispatchPlan<> here;  // rows sorted by expert, so those of a rank stand together
    here.tokens_per_expert_E = count_E_;
    here.token_of_row_N = token_of_row_S_;
    here.choice_of_row_N = choice_of_row_S_;
    here.row_TK = row_TK_;
    gatepro::plan_dispatch(gatepro::Choices{expert_ids_TK}, experts_, {}, here, scratch_);

    const Index ranks = comm_.size(), each = experts_ / ranks;
    const int count = static_cast<int>(each);
    ledger_.time(Part::wait, [&] { comm_.wait(); });
    ledger_.time(Part::exchange, [&] {
      MPI_Alltoall(count_E_.data(), count, MPI_INT64_T, count_SE_.data(), count, MPI_INT64_T,
                   comm_.get());
    });
    const gatepro::MatrixView<const std::int64_t> to_RE(count_E_.data(), ranks, each);
    const gatepro::MatrixView<const std::int64_t> from_SE(count_SE_.data(), ranks, each);
    gatepro::exchange_counts(to_RE, 1, {send_.counts_R, send_.displacements_R});
    gatepro::exchange_counts(from_SE, 1, {receive_.counts_R, receive_.displacements_R});

    row_N_.resize(size(receive_.rows()));
    source_of_row_N_.resize(row_N_.size());
    gatepro::DispatchPlan<> there;  // rows come as [source][expert], experts want [expert]
    there.offsets_E1 = begin_E1_;
    there.token_of_row_N = source_of_row_N_;
    there.row_TK = {row_N_.data(), receive_.rows(), 1};
    gatepro::plan_regroup(from_SE, {}, there, scratch_);
    ledger_.send(8 * (ranks - 1) * each);
  }

  /// rows_SH of this rank's choices, by expert -> rows_NH of this rank's experts, by expert.
  void to_experts(const RowMatrix<A>& rows_SH, RowMatrix<A>& rows_NH, const Executor& executor) {
    received_NH_.resize(receive_.rows(), hidden_);
    rows_NH.resize(receive_.rows(), hidden_);
    move(rows_SH, send_, received_NH_, receive_);
    ledger_.time(Part::permute,
                 [&] { permute(source_of_row_N_, received_NH_, rows_NH, executor); });
  }
  /// And back.
  void from_experts(const RowMatrix<A>& rows_NH, RowMatrix<A>& rows_SH, const Executor& executor) {
    received_NH_.resize(receive_.rows(), hidden_);
    rows_SH.resize(send_.rows(), hidden_);
    ledger_.time(Part::permute, [&] { permute(row_N_, rows_NH, received_NH_, executor); });
    move(received_NH_, receive_, rows_SH, send_);
  }

  /// Of the last plan: the rows of this rank's choices, sorted by expert.
  gatepro::VectorView<const std::int32_t> token_of_row_S() const { return token_of_row_S_; }
  gatepro::VectorView<const std::int32_t> choice_of_row_S() const { return choice_of_row_S_; }
  gatepro::StridedView<const std::int32_t> row_TK() const { return row_TK_; }
  /// Of the last plan: where the rows of this rank's experts begin, and how many there are.
  gatepro::VectorView<const std::int64_t> begin_E1() const { return begin_E1_; }

 private:
  /// One side of MPI_Alltoallv, in rows.
  struct Side {
    explicit Side(std::size_t ranks) : counts_R(ranks), displacements_R(ranks) {}
    std::vector<int> counts_R, displacements_R;
    Index rows() const { return Index{displacements_R.back()} + counts_R.back(); }
  };

  static std::size_t size(Index n) { return static_cast<std::size_t>(n); }

  static void permute(const std::vector<std::int32_t>& source_of_row, const RowMatrix<A>& from,
                      RowMatrix<A>& to, const Executor& executor) {
    gatepro::permute(gatepro::VectorView<const std::int32_t>(source_of_row), from,
                     gatepro::view(to), executor);
  }

  void move(const RowMatrix<A>& from, const Side& send, RowMatrix<A>& to, const Side& receive) {
    ledger_.time(Part::wait, [&] { comm_.wait(); });
    ledger_.time(Part::exchange, [&] {
      MPI_Alltoallv(from.data(), send.counts_R.data(), send.displacements_R.data(), row_type_.get(),
                    to.data(), receive.counts_R.data(), receive.displacements_R.data(),
                    row_type_.get(), comm_.get());
    });
    const Index others = send.rows() - send.counts_R[size(comm_.rank())];
    ledger_.send(others * hidden_ * Index{sizeof(A)});
  }

  const Communicator& comm_;
  Ledger& ledger_;
  RowType<A> row_type_;
  Index hidden_, experts_;
  std::vector<std::int64_t> count_E_, count_SE_, begin_E1_;
  Side send_, receive_;
  std::vector<std::int32_t> token_of_row_S_, choice_of_row_S_, row_N_, source_of_row_N_;
  RowMatrix<std::int32_t> row_TK_;
  RowMatrix<A> received_NH_;
  std::vector<std::byte> scratch_;
};

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_EXCHANGE_HPP
