// SPDX-License-Identifier: MIT
// The ranks of a job: what the example asks of MPI but for the exchange of rows.
#ifndef EXPERT_PARALLEL_COMMUNICATOR_HPP
#define EXPERT_PARALLEL_COMMUNICATOR_HPP

#include <mpi.h>

#include <algorithm>
#include <cstdint>
#include <gatepro/core/views.hpp>
#include <string>
#include <vector>

#include "error.hpp"

namespace expert_parallel {

using gatepro::Index;
using gatepro::RowMatrix;

/// gatepro's reduce hook: replaces counts by their sums over all ranks.
struct SumOverRanks {
  MPI_Comm comm;
  void operator()(std::int64_t* counts, Index size) const {
    MPI_Allreduce(MPI_IN_PLACE, counts, static_cast<int>(size), MPI_INT64_T, MPI_SUM, comm);
  }
};

inline MPI_Datatype mpi_type(float) { return MPI_FLOAT; }
inline MPI_Datatype mpi_type(double) { return MPI_DOUBLE; }

/// A communicator that somebody else frees. MPI's own errors end the job: that is its default.
class Communicator {
 public:
  explicit Communicator(MPI_Comm comm) : comm_(comm) {
    MPI_Comm_rank(comm, &rank_);
    MPI_Comm_size(comm, &size_);
  }

  MPI_Comm get() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  SumOverRanks sum() const { return {comm_}; }

  /// Sums a matrix over ranks, in the order that MPI likes.
  template <class A>
  void add_up(RowMatrix<A>& matrix) const {
    for (Index first = 0; first < matrix.size(); first += most_elements) {
      const Index count = std::min(most_elements, matrix.size() - first);
      MPI_Allreduce(MPI_IN_PLACE, matrix.data() + first, static_cast<int>(count), mpi_type(A()),
                    MPI_SUM, comm_);
    }
  }
  double largest(double value) const {
    MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_DOUBLE, MPI_MAX, comm_);
    return value;
  }
  void broadcast(std::vector<std::int32_t>& values, int from) const {
    MPI_Bcast(values.data(), static_cast<int>(values.size()), MPI_INT32_T, from, comm_);
  }
  /// `count` values of each rank, rank after rank, on rank 0.
  std::vector<std::int64_t> gather(const std::vector<std::int64_t>& mine) const {
    std::vector<std::int64_t> all(mine.size() * static_cast<std::size_t>(size_));
    const int count = static_cast<int>(mine.size());
    MPI_Gather(mine.data(), count, MPI_INT64_T, all.data(), count, MPI_INT64_T, 0, comm_);
    return all;
  }
  /// Returns when all ranks have come.
  void wait() const { MPI_Barrier(comm_); }

  /// Bytes that rank 0 has, on all ranks. They need no file system in common.
  std::string broadcast(std::string bytes) const {
    std::int64_t size = static_cast<std::int64_t>(bytes.size());
    MPI_Bcast(&size, 1, MPI_INT64_T, 0, comm_);
    bytes.resize(static_cast<std::size_t>(size));
    for (std::int64_t first = 0; first < size; first += most_elements) {
      const std::int64_t count = std::min<std::int64_t>(most_elements, size - first);
      MPI_Bcast(bytes.data() + first, static_cast<int>(count), MPI_BYTE, 0, comm_);
    }
    return bytes;
  }

  /// Calls `work`, which may throw a UserError on any rank, on all of them, and throws on all if it
  /// did on one: the message is that of the first, and empty on the other ranks. `work` itself asks
  /// nothing of other ranks.
  template <class Work>
  void together(const Work& work) const {
    std::string message;
    int first = size_;
    try {
      work();
    } catch (const train_moe::UserError& error) {
      message = error.what();
      first = rank_;
    }
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, comm_);
    if (first < size_) throw train_moe::UserError(first == rank_ ? message : std::string());
  }
  /// Throws a UserError on all ranks, which all call it: with the message on the first.
  [[noreturn]] void refuse(const std::string& message) const {
    throw train_moe::UserError(rank_ == 0 ? message : std::string());
  }

 private:
  static constexpr Index most_elements = 1 << 30;  // a count of MPI is an int

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_COMMUNICATOR_HPP
