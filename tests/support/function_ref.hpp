// SPDX-License-Identifier: MIT
// A callable passed by reference to code that is compiled once, not once per lambda.
#ifndef GATEPRO_TESTS_SUPPORT_FUNCTION_REF_HPP
#define GATEPRO_TESTS_SUPPORT_FUNCTION_REF_HPP

template <class Signature>
class FunctionRef;

/// Refers to a callable that outlives it, as an argument of a call does.
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class Callable>
  FunctionRef(const Callable& callable)  // NOLINT(google-explicit-constructor)
      : callable_(&callable), call_([](const void* object, Args... args) -> Result {
          return static_cast<Result>((*static_cast<const Callable*>(object))(args...));
        }) {}
  Result operator()(Args... args) const { return call_(callable_, args...); }

 private:
  const void* callable_;
  Result (*call_)(const void*, Args...);
};

#endif  // GATEPRO_TESTS_SUPPORT_FUNCTION_REF_HPP
