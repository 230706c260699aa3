// Every kernel of one instruction set over the same made-up numbers: one line a case, its name and
// a hash of all the memory it was given. Two instruction sets agree where their lines do.
//
// Needs neither Python nor torch, so that a processor which is only emulated here can run it. What
// there is to run is read from the table of kernels: a new rule is covered as it stands.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"

namespace fastopt::FASTOPT_ISA {
Kernels kernels();
}

namespace {

using namespace fastopt;

const Kernels table = FASTOPT_ISA::kernels();
constexpr const char* kNames[kDtypes] = {"float32", "float64", "bfloat16", "float16"};
constexpr int kMantissaBits[kDtypes] = {23, 52, 7, 10};
constexpr int kWidest = 32;  // numbers in the widest registers there are, of 16 bits each

// S. Vigna's splitmix64: integers only, so that no compiler's arithmetic is in the data.
struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return (*this)() % n; }
  double uniform() { return double((*this)() >> 11) * 0x1p-53; }
};

// Numbers of one type as bits, in memory of their own.
struct Numbers {
  int dtype;
  std::vector<char> memory;

  Numbers(int type, int64_t count) : dtype(type), memory(size_t(count * kElementBytes[type])) {}
  int bytes() const { return kElementBytes[dtype]; }
  int64_t count() const { return int64_t(memory.size()) / bytes(); }
  char* at(int64_t i) { return memory.data() + i * bytes(); }
  uint64_t exponents() const { return (1ull << (8 * bytes() - 1 - kMantissaBits[dtype])) - 1; }

  // Tame: between 2^-12 and 2^4. Wild: also zeros, and any bits at all.
  void fill(Random& random, bool wild, bool negative) {
    const int mantissa = kMantissaBits[dtype], sign = 8 * bytes() - 1;
    for (int64_t i = 0; i < count(); ++i) {
      const uint64_t any = random(), kind = wild ? random.below(8) : 2;
      const uint64_t exponent = exponents() / 2 - 12 + random.below(16);
      uint64_t bits = (any & ((1ull << mantissa) - 1)) | exponent << mantissa;
      if (negative) bits |= (any >> 63) << sign;
      if (kind == 0) bits = any;
      if (kind == 1) bits = (any >> 63) << sign;
      std::memcpy(at(i), &bits, size_t(bytes()));
    }
  }

  // FNV-1a, all NaNs counting as one: which sign and payload an operation gives is not promised.
  uint64_t hash(uint64_t h) {
    const int mantissa = kMantissaBits[dtype];
    for (int64_t i = 0; i < count(); ++i) {
      uint64_t bits = 0;
      std::memcpy(&bits, at(i), size_t(bytes()));
      const uint64_t magnitude = bits & ~(1ull << (8 * bytes() - 1));
      h = (h ^ (magnitude > exponents() << mantissa ? ~0ull : bits)) * 0x100000001b3;
    }
    return h;
  }
};

constexpr uint64_t kSeed = 0xcbf29ce484222325;

uint64_t hash_doubles(const double* x, int64_t count, uint64_t h) {
  Numbers numbers(int(Dtype::float64), count);
  std::memcpy(numbers.at(0), x, numbers.memory.size());
  return numbers.hash(h);
}

void print(const std::string& name, uint64_t h) {
  std::printf("%s %016" PRIx64 "\n", name.c_str(), h);
}

// Scalars of the update: mostly plain numbers, some of them what switches a term off or on.
void make_scalars(Random& random, double* scalars) {
  for (int k = 0; k < kMaxScalars; ++k) {
    const uint64_t kind = random.below(8);
    scalars[k] = kind == 0 ? 0 : kind == 1 ? 1 : random.uniform();
  }
}

Passes make_passes(Random& random, bool more) {
  Passes passes;
  passes.unscale = random.below(2);
  passes.grad_scale = 1 + random.uniform();
  passes.maximize = random.below(2);
  if (!more) return passes;
  if (random.below(2)) passes.clip_factor = random.uniform();
  if (random.below(2)) passes.max_grad_value = random.uniform();
  if (random.below(2)) passes.l1 = random.uniform();
  passes.average = random.below(2);
  passes.ema_decay = random.uniform();
  passes.clear_grads = random.below(2);
  passes.track_stats = random.below(2);
  return passes;
}

// One call over runs of these lengths. They lie two numbers apart, so that they start at all
// alignments; the hash takes in the gaps, which nothing may write.
uint64_t update(Random& random, Kernel kernel, int states, int dtype, bool more, bool wild,
                const std::vector<int64_t>& lengths, uint64_t h) {
  int64_t total = 2;
  for (int64_t n : lengths) total += n + 2;
  std::vector<Numbers> streams(size_t(2 + states + more), Numbers(dtype, total));
  for (size_t k = 0; k < streams.size(); ++k) streams[k].fill(random, wild, wild || k < 2);
  std::vector<double> sums(kSums * lengths.size());
  std::vector<Run> runs(lengths.size());
  int64_t start = 2;
  for (size_t r = 0; r < runs.size(); start += lengths[r++] + 2) {
    for (size_t k = 0; k < streams.size(); ++k) runs[r].streams[k] = streams[k].at(start);
    runs[r].count = lengths[r];
    runs[r].sums = &sums[kSums * r];
  }
  double scalars[kMaxScalars];
  make_scalars(random, scalars);
  kernel(runs.data(), int64_t(runs.size()), scalars, make_passes(random, more));
  for (Numbers& stream : streams) h = stream.hash(h);
  return hash_doubles(sums.data(), int64_t(sums.size()), h);
}

void updates() {
  std::vector<int64_t> lengths = {1000};
  for (int64_t n = 0; n <= 3 * kWidest + 1; ++n) lengths.push_back(n);
  for (int rule = 0; rule < table.rule_count; ++rule) {
    for (int variant = 0; variant < table.rules[rule].variants; ++variant) {
      int states = 0;
      while (table.rules[rule].states[variant][states].name) ++states;
      for (int dtype = 0; dtype < kDtypes; ++dtype) {
        for (int more = 0; more < 2; ++more) {
          const Kernel kernel = table.update[more][rule][variant][dtype];
          const std::string name = std::string(table.rules[rule].name) + " " +
                                   std::to_string(variant) + " " + kNames[dtype] +
                                   (more ? " with passes " : " bare ");
          Random random{kSeed};
          for (int draw = 0; draw < 12; ++draw) {
            const bool wild = draw % 2;
            print(name + std::to_string(draw) + (wild ? " wild" : " tame"),
                  update(random, kernel, states, dtype, more, wild, lengths, kSeed));
          }
          // A divisor that is one of the scalars is divided by with its reciprocal: many of them.
          uint64_t h = kSeed;
          for (int draw = 0; draw < 2000; ++draw) {
            h = update(random, kernel, states, dtype, more, false, {kWidest + 1}, h);
          }
          print(name + "many scalars", h);
        }
      }
    }
  }
}

void norms() {
  for (int dtype = 0; dtype < kDtypes; ++dtype) {
    for (int wild = 0; wild < 2; ++wild) {
      Random random{kSeed};
      uint64_t h = kSeed;
      for (int64_t n = 1; n < 5 * kNormBlock; n += n < 5 * kWidest ? 1 : 61) {
        Numbers numbers(dtype, n);
        numbers.fill(random, wild, true);
        double sums[5];
        h ^= table.square_sums[dtype](numbers.at(0), n, sums);
        h = hash_doubles(sums, (n + kNormBlock - 1) / kNormBlock, h);
      }
      print(std::string("norm ") + kNames[dtype] + (wild ? " wild" : " tame"), h);
    }
  }
}

// All 65536 numbers of a 16-bit type to float32; back from there, and from a million floats of
// which many lie between two of its numbers.
void conversions() {
  for (Dtype dtype : {Dtype::bfloat16, Dtype::float16}) {
    const std::string name = kNames[int(dtype)];
    std::vector<uint16_t> all(65536);
    for (size_t i = 0; i < all.size(); ++i) all[i] = uint16_t(i);
    Numbers wide(int(Dtype::float32), 65536), back(int(dtype), 65536);
    table.widen(dtype, all.data(), reinterpret_cast<float*>(wide.at(0)), 65536);
    print("widen " + name, wide.hash(kSeed));
    Random random{kSeed};
    uint64_t h = kSeed;
    for (int k = 0; k < 16; ++k) {
      table.narrow(dtype, reinterpret_cast<float*>(wide.at(0)),
                   reinterpret_cast<uint16_t*>(back.at(0)), 65536);
      h = back.hash(h);
      for (int64_t i = 0; i < wide.count(); ++i) {  // the low half: 0, a tie, next to one, any
        const uint16_t low[] = {0x8000, 0x7fff, 0x8001, uint16_t(random())};
        const uint16_t high = uint16_t(k % 2 ? random() : uint64_t(i));
        const uint32_t bits = uint32_t(high) << 16 | low[random.below(4)];
        std::memcpy(wide.at(i), &bits, sizeof bits);
      }
    }
    print("narrow " + name, h);
  }
}

// A stream in a format: made of tame numbers, and then the numbers that it holds.
struct Coded {
  Stored stored;
  int64_t count;
  std::vector<char> first, second;

  Coded(Random& random, Stored in, int64_t n, bool negative)
      : stored(in),
        count(n),
        first(size_t(first_bytes(in.format, n))),
        second(size_t(second_bytes(in.format, n))) {
    Numbers numbers(int(Dtype::float32), n);
    numbers.fill(random, false, negative);
    std::vector<uint32_t> words(size_t(n), 0);
    for (uint32_t& word : words) word = uint32_t(random());
    table.encode(stored, reinterpret_cast<float*>(numbers.at(0)), words.data(), first.data(),
                 second.data(), n);
  }
  CompactStream stream() { return {first.data(), second.data(), stored}; }
  uint64_t hash(uint64_t h) {
    Numbers numbers(int(Dtype::float32), count);
    table.decode(stored.format, first.data(), second.data(),
                 reinterpret_cast<float*>(numbers.at(0)), count);
    return numbers.hash(h);
  }
};

void compacts() {
  constexpr int64_t kCounts[] = {1000, 256, 64, 63, 1};
  const Stored weights[] = {{Format::float32},
                            {Format::split16},
                            {Format::split8, Rounds::weight},
                            {Format::bfloat16, Rounds::weight},
                            {Format::rest16},
                            {Format::rest8},
                            {Format::float16},
                            {Format::float16, Rounds::weight}};
  const Stored grads[] = {{Format::float32}, {Format::bfloat16}, {Format::float16}};
  for (int rule = 0; rule < table.rule_count; ++rule) {
    for (int variant = 0; variant < table.rules[rule].variants; ++variant) {
      const Rule::State* states = table.rules[rule].states[variant];
      Random random{kSeed};
      for (int draw = 0; draw < 96; ++draw) {
        uint64_t h = kSeed;
        const bool bare = draw % 2, bytes = random.below(2), words = random.below(2);
        const Stored weight = weights[random.below(8)];
        const Stored grad = grads[random.below(3)];
        for (const int64_t count : kCounts) {
          std::vector<Coded> streams;
          streams.emplace_back(random, weight, count, true);
          streams.emplace_back(random, grad, count, true);
          for (int k = 0; states[k].name; ++k) {
            const bool is_signed = states[k].kind == Rule::kSigned;
            Stored stored{is_signed ? Format::signed8 : Format::positive8};
            if (!bytes) stored.format = Format::bfloat16;
            if (states[k].kind != Rule::kMaximum) {
              stored.rounds = is_signed ? Rounds::signed_ : Rounds::positive;
            }
            stored.word = words ? k % kWords : 0;
            streams.emplace_back(random, stored, count, is_signed);
          }
          streams.emplace_back(random, grads[draw % 2], count, true);  // the average
          double sums[kSums] = {}, scalars[kMaxScalars];
          CompactRun run{};
          for (size_t k = 0; k < streams.size(); ++k) run.streams[k] = streams[k].stream();
          run.count = count;
          run.element = random.below(1 << 20) * kBlock;
          for (uint64_t& key : run.keys) key = random();
          run.sums = sums;
          make_scalars(random, scalars);
          table.compact[int(Sweep::passes)][rule][variant](run, scalars, make_passes(random, !bare));
          for (Coded& stream : streams) h = stream.hash(h);
          h = hash_doubles(sums, kSums, h);
        }
        print(std::string(table.rules[rule].name) + " " + std::to_string(variant) + " compact " +
                  std::to_string(draw),
              h);
      }
    }
  }
}

}  // namespace

int main() {
  updates();
  compacts();
  norms();
  conversions();
}
