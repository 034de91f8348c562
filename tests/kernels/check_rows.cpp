// Runs the CUDA library's source under the emulation, on random input, against reference.h.
// usage: check_rows ROUNDS SEED ORDER: rounds over all combinations of features, the seed of the
// input, and the seed of the order of threads (0: by number). Prints every failure and a summary.
#include <stdarg.h>
#include <stdio.h>

#include <string>

#include "drawing.h"
#include "reference.h"
#include "rib_emulated.h"

namespace {

struct Tally {
    int cases = 0, failed = 0;
    double worst = 0.0;  // |error| / tolerance
};
Tally tally;

// One call to the library: what it was, for messages, and whether it did right.
class Case {
   public:
    explicit Case(std::string name) : name_(std::move(name)) { ++tally.cases; }
    ~Case() { tally.failed += failed_; }

    __attribute__((format(printf, 3, 4))) void expect(bool right, const char* format, ...) {
        if (right || failed_) return;  // the first failure of a case says enough
        failed_ = true;
        va_list details;
        va_start(details, format);
        printf("FAIL %s: ", name_.c_str());
        vprintf(format, details);
        printf("\n");
        va_end(details);
    }

    void expect_close(const char* what, int64_t row, int64_t column, float got, Bounded expected) {
        const double error = fabs(got - expected.value) / expected.tolerance;
        tally.worst = std::max(tally.worst, error);
        expect(error <= 1.0, "%s (%lld, %lld): %.9g, not %.9g +- %.1g", what, (long long)row,
               (long long)column, got, expected.value, expected.tolerance);
    }

   private:
    std::string name_;
    bool failed_ = false;
};

// ---- Input

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
    char buffer[300];
    va_list details;
    va_start(details, format);
    vsnprintf(buffer, sizeof buffer, format, details);
    va_end(details);
    return buffer;
}

int64_t draw_columns(Draw& draw) { return 1 + draw.below(draw.one_of({9, 130, 130, 700})); }

// Large blocks only where there is one: a thread costs ThreadSanitizer half a millisecond.
int draw_threads(Draw& draw, int64_t blocks) {
    if (blocks == 1 && draw.once_in(3)) return draw.one_of({256, 512, 1024});
    return draw.one_of({0, 0, 32, 32, 64, 96});
}

std::vector<int64_t> draw_labels(Draw& draw, int64_t n, int64_t C) {
    std::vector<int64_t> labels;
    for (int64_t i = 0; i < n; ++i) {
        const bool outside = draw.once_in(5);
        labels.push_back(outside ? draw.one_of<int64_t>({-1, -100, INT64_MIN, C, C + 7, INT64_MAX})
                                 : draw.below(C));
    }
    return labels;
}

// From an even assignment of an image to the clusters to all of it to one.
float draw_scale(Draw& draw) { return draw.one_of({2.f, 20.f, 120.f, 4000.f}); }

bool known(int64_t label, int64_t C) { return label >= 0 && label < C; }

struct Logits {
    Matrix<float> products, half_norms;
    float scale;

    Logits(Draw& draw, int64_t n, int64_t K, float scale, int64_t pitch, int64_t shift,
           int64_t norms_shift)
        : products(n, K, pitch, shift), half_norms(1, K, K, norms_shift), scale(scale) {
        for (int64_t a = 0; a < K; ++a) half_norms(0, a) = draw.between(0.f, 1.f);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t a = 0; a < K; ++a) products(i, a) = draw.between(-1.f, 1.f);
    }

    Softmax reference(int64_t row) {
        const int64_t K = products.columns();
        const std::vector<double> x(&products(row, 0), &products(row, 0) + K);
        return softmax(x, std::vector<double>(half_norms.data(), half_norms.data() + K), scale);
    }
};

// A table of log Q between -64 and 0, of one of the three dtypes.
class LogQ {
   public:
    LogQ(Draw& draw, int dtype, int64_t rows, int64_t columns, int64_t pitch, int64_t shift)
        : dtype_(dtype), single_(rows, columns, pitch, shift), half_(rows, columns, pitch, shift) {
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t a = 0; a < columns; ++a) {
                single_(i, a) = draw.between(-64.f, 0.f);
                // Sign, then an exponent that gives 2^-5..2^5 and any fraction.
                half_(i, a) = static_cast<uint16_t>(
                    dtype == RIB_F16 ? 0x8000 | (10 + draw.below(11)) << 10 | draw.below(1 << 10)
                                     : 0x8000 | (122 + draw.below(11)) << 7 | draw.below(1 << 7));
            }
        }
    }

    void* data() { return dtype_ == RIB_F32 ? (void*)single_.data() : (void*)half_.data(); }
    int64_t pitch() const { return single_.pitch(); }
    double value(int64_t row, int64_t column) {
        const int bits = half_(row, column);
        if (dtype_ == RIB_F16) return -ldexp(1.0 + (bits & 1023) / 1024.0, (bits >> 10 & 31) - 15);
        if (dtype_ == RIB_BF16) return -ldexp(1.0 + (bits & 127) / 128.0, (bits >> 7 & 255) - 127);
        return single_(row, column);
    }

   private:
    int dtype_;
    Matrix<float> single_;
    Matrix<uint16_t> half_;
};

const char* dtype_name(int dtype) {
    return dtype == RIB_F32 ? "float32" : dtype == RIB_F16 ? "float16" : "bfloat16";
}

// ---- The bound

struct BoundShape {
    int64_t n, K, C;
    int dtype, variant, threads;
    int form;
    bool marginal;
    float gamma;
    size_t max_shared;
};

void check_bound(Draw& draw, const BoundShape& shape) {
    const int64_t n = shape.n, K = shape.K, C = shape.C;
    // Only some pitches and addresses allow wide accesses; the choice is the library's if auto.
    const bool wide = shape.variant == RIB_AUTO ? draw.once_in(2) : shape.variant & RIB_WIDE;
    const auto pitch_of = [&](int64_t columns) {
        return wide ? (columns + 3) / 4 * 4 + 4 * draw.below(2) : columns + draw.below(8);
    };
    const auto shift = [&] { return wide ? 0 : draw.one_of<int64_t>({0, 0, 0, 1, 4}); };
    Logits logits(draw, n, K, draw_scale(draw), pitch_of(K), shift(), shift());
    LogQ log_q(draw, shape.dtype, C, K, pitch_of(K), shift());
    Matrix<float> loss(1, n, n), log_p(1, K, K, shift());
    std::vector<int64_t> labels = draw_labels(draw, n, C);

    std::vector<std::vector<double>> rows;  // of log Q, in float64
    for (int64_t c = 0; c < C; ++c) {
        std::vector<double> row(static_cast<size_t>(K));
        for (int64_t a = 0; a < K; ++a) row[a] = log_q.value(c, a);
        rows.push_back(row);
    }
    std::vector<double> marginal(static_cast<size_t>(K), 0.0);  // log P in float64
    for (int64_t a = 0; a < K; ++a) {
        log_p(0, a) = draw.between(-40.f, 0.f);
        if (shape.marginal) marginal[a] = log_p(0, a);
    }

    Case test(text("%s %s%s n %d K %d C %d gamma %g scale %g variant %d threads %d pitch %d",
                   dtype_name(shape.dtype), shape.form == RIB_EMBEDDING ? "embedding" : "clusters",
                   shape.marginal ? " with marginal" : "", (int)n, (int)K, (int)C, shape.gamma,
                   logits.scale, shape.variant, shape.threads, (int)logits.products.pitch()));
    rib_bound_args args = {};
    Matrix<float> products(logits.products);
    args.products = products.data();
    args.half_norms = logits.half_norms.data();
    args.log_q = log_q.data();
    args.log_p = shape.marginal ? log_p.data() : nullptr;
    args.labels = labels.data();
    args.loss = loss.data();
    args.n = n, args.K = K, args.C = C;
    args.products_pitch = products.pitch();
    args.log_q_pitch = log_q.pitch();
    args.scale = logits.scale;
    args.gamma = shape.gamma;
    args.log_q_dtype = shape.dtype;
    args.form = shape.form;
    args.variant = shape.variant;
    args.threads = shape.threads;

    simt::device.max_shared = shape.max_shared;
    const int code = rib_bound(&args);
    test.expect(code == RIB_OK, "returned %d", code);
    if (code != RIB_OK) return;
    test.expect(products.padding_is_untouched(), "wrote into the padding of the products");
    for (int64_t i = 0; i < n; ++i) {
        const int64_t label = labels[i];
        if (!known(label, C)) {
            test.expect(label < 0 ? loss(0, i) == 0.f : isnan(loss(0, i)), "loss %g of label %lld",
                        loss(0, i), (long long)label);
            for (int64_t a = 0; a < K; ++a)
                test.expect(products(i, a) == 0.f, "a gradient with label %lld", (long long)label);
            continue;
        }
        const auto bound = shape.form == RIB_EMBEDDING ? embedding_bound : clusters_bound;
        const Bound expected = bound(logits.reference(i), rows[label], marginal, shape.gamma);
        test.expect_close("loss", i, 0, loss(0, i), expected.loss);
        for (int64_t a = 0; a < K; ++a)
            test.expect_close("gradient", i, a, products(i, a), expected.gradient[a]);
    }
}

constexpr size_t kRoomy = 227 * 1024, kCramped = 1280;  // shared memory, bytes

// Every dtype with every form and variant; the values of gamma, with the marginal and without it,
// take turns from round to round.
void check_bounds(Draw& draw, int round) {
    const float gammas[] = {0.f, 0.3f, 1.f, 2.f};
    int turn = round;
    for (int dtype : {RIB_F32, RIB_F16, RIB_BF16}) {
        for (int form : {RIB_CLUSTERS, RIB_EMBEDDING}) {
            for (int variant : {-1, 0, 1, 2, 3}) {
                const int64_t K = draw_columns(draw);
                BoundShape shape = {};
                shape.n = 1 + draw.below(4), shape.K = K, shape.C = 1 + draw.below(3);
                shape.dtype = dtype, shape.variant = variant,
                shape.threads = draw_threads(draw, shape.n);
                shape.form = form, shape.marginal = draw.once_in(2);
                shape.gamma = gammas[turn++ % 4];
                // Too little for the cache: the automatic choice must do without.
                shape.max_shared = variant == RIB_AUTO && draw.once_in(2) ? kCramped : kRoomy;
                check_bound(draw, shape);
            }
            ++turn;
        }
    }
}

// ---- Arguments and limits

// A call that is right, to be made wrong in one place.
struct alignas(16) SmallCall {
    float products[4], half_norms[4], log_q[4], log_p[4], loss[1];
    int64_t labels[1] = {0};
    rib_bound_args bound = {};

    SmallCall() {
        for (float& value : products) value = 1.f;
        for (float& value : half_norms) value = 1.f;
        for (float& value : log_q) value = -1.f;
        for (float& value : log_p) value = -1.f;
        bound.products = products, bound.half_norms = half_norms, bound.log_q = log_q;
        bound.log_p = log_p, bound.labels = labels, bound.loss = loss;
        bound.n = 1, bound.K = 4, bound.C = 1, bound.products_pitch = 4, bound.log_q_pitch = 4;
        bound.scale = 1.f, bound.variant = RIB_AUTO, bound.threads = 32;
    }
};

void check_bound_refusals() {
    using Change = void (*)(rib_bound_args&);
    const std::pair<const char*, Change> wrong[] = {
        {"no products", [](rib_bound_args& p) { p.products = nullptr; }},
        {"no half_norms", [](rib_bound_args& p) { p.half_norms = nullptr; }},
        {"no log_q", [](rib_bound_args& p) { p.log_q = nullptr; }},
        {"no labels", [](rib_bound_args& p) { p.labels = nullptr; }},
        {"no loss", [](rib_bound_args& p) { p.loss = nullptr; }},
        {"n < 0", [](rib_bound_args& p) { p.n = -1; }},
        {"n beyond a grid", [](rib_bound_args& p) { p.n = int64_t{1} << 32; }},
        {"K = 0", [](rib_bound_args& p) { p.K = 0; }},
        {"K beyond 32 bits",
         [](rib_bound_args& p) { p.K = p.products_pitch = p.log_q_pitch = int64_t{1} << 32; }},
        {"C = 0", [](rib_bound_args& p) { p.C = 0; }},
        {"products_pitch < K", [](rib_bound_args& p) { p.products_pitch = 3; }},
        {"log_q_pitch < K", [](rib_bound_args& p) { p.log_q_pitch = 3; }},
        {"dtype 3", [](rib_bound_args& p) { p.log_q_dtype = 3; }},
        {"dtype -1", [](rib_bound_args& p) { p.log_q_dtype = -1; }},
        {"form 2", [](rib_bound_args& p) { p.form = 2; }},
        {"form -1", [](rib_bound_args& p) { p.form = -1; }},
        {"variant -2", [](rib_bound_args& p) { p.variant = -2; }},
        {"variant 4", [](rib_bound_args& p) { p.variant = 4; }},
        {"33 threads", [](rib_bound_args& p) { p.threads = 33; }},
        {"-32 threads", [](rib_bound_args& p) { p.threads = -32; }},
        {"1056 threads", [](rib_bound_args& p) { p.threads = 1056; }},
    };
    const std::pair<const char*, Change> wrong_if_wide[] = {
        {"products not aligned", [](rib_bound_args& p) { ++p.products, p.K = 3; }},
        {"half_norms not aligned", [](rib_bound_args& p) { ++p.half_norms, p.K = 3; }},
        {"log_q not aligned",
         [](rib_bound_args& p) { p.log_q = static_cast<const float*>(p.log_q) + 1, p.K = 3; }},
        {"log_p not aligned", [](rib_bound_args& p) { ++p.log_p, p.K = 3; }},
        {"products_pitch odd", [](rib_bound_args& p) { p.products_pitch = p.K = 3; }},
        {"log_q_pitch odd", [](rib_bound_args& p) { p.log_q_pitch = p.K = 3; }},
    };
    const auto refuses = [](const std::pair<const char*, Change>& change, const char* of,
                            int variant) {
        Case test(text("%s, %s", of, change.first));
        SmallCall right, call;
        right.bound.variant = call.bound.variant = variant;
        test.expect(rib_bound(&right.bound) == RIB_OK, "refused before the change, too");
        change.second(call.bound);
        const int code = rib_bound(&call.bound);
        test.expect(code == RIB_EARG, "returned %d", code);
        for (float value : call.products) test.expect(value == 1.f, "computed all the same");
    };
    for (const auto& change : wrong) refuses(change, "bound", RIB_AUTO);
    for (const auto& change : wrong_if_wide) refuses(change, "wide", RIB_WIDE);
    Case test("bound, no arguments");
    test.expect(rib_bound(nullptr) == RIB_EARG, "not refused");
}

void check_limits(Draw& draw) {
    {
        Case test("n = 0");
        SmallCall call;
        call.bound.n = 0;
        // What torch gives for the address of an empty tensor.
        call.bound.products = nullptr, call.bound.labels = nullptr, call.bound.loss = nullptr;
        test.expect(rib_bound(&call.bound) == RIB_OK, "refused");
    }
    {
        // Column 0 has all of phi and the ratio e^-59, so that e^40 over u is infinite in float32.
        Case test("a large ratio where phi is 0");
        SmallCall call;
        call.bound.form = RIB_EMBEDDING, call.bound.scale = 4000.f;
        call.products[0] = 2.f, call.log_q[0] = -60.f, call.log_p[1] = -41.f;
        test.expect(rib_bound(&call.bound) == RIB_OK, "refused");
        test.expect(fabsf(call.loss[0] - 59.f) < 1e-4f, "loss %g", call.loss[0]);
        for (float value : call.products) test.expect(fabsf(value) < 1e-5f, "gradient %g", value);
    }
    {
        Case test("a device that is not there");
        SmallCall call;
        call.bound.device = 1;
        test.expect(rib_bound(&call.bound) == cudaErrorInvalidDevice, "accepted");
    }
    {
        Case test("an error that an earlier call left behind");
        SmallCall call;
        simt::device.last_error = cudaErrorInvalidValue;
        test.expect(rib_bound(&call.bound) == RIB_OK, "taken for its own");
    }
    {
        Case test("texts and version");
        test.expect(rib_abi() == RIB_ABI_VERSION, "ABI %d", rib_abi());
        test.expect(strlen(rib_describe()) > 0, "no description");
        for (int code : {(int)RIB_EARG, (int)cudaErrorInvalidDevice})
            test.expect(strlen(rib_error_text(code)) > 0, "no text of error %d", code);
    }
    // More shared memory than 48 KiB has to be asked for; beyond the limit the cache is left out.
    const int clusters = RIB_CLUSTERS, embedding = RIB_EMBEDDING;
    check_bound(draw, {1, 6501, 1, RIB_F32, RIB_AUTO, 256, clusters, false, 0.3f, kRoomy});
    check_bound(draw, {1, 30001, 1, RIB_BF16, RIB_AUTO, 0, embedding, true, 1.f, kRoomy});
    SmallCall call;
    call.bound.variant = RIB_CACHED;
    simt::device.max_shared = 512;
    Case test("a cache without room");
    test.expect(rib_bound(&call.bound) == RIB_EARG, "accepted");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: check_rows ROUNDS SEED ORDER\n");
        return 2;
    }
    Draw draw(strtoull(argv[2], nullptr, 10));
    simt::order_seed = strtoull(argv[3], nullptr, 10);
    check_bound_refusals();
    check_limits(draw);
    simt::device.max_shared = kRoomy;
    for (int round = 0; round < atoi(argv[1]); ++round) check_bounds(draw, round);
    printf("%d cases, %d failed; largest error / tolerance %.2f\n", tally.cases, tally.failed,
           tally.worst);
    return tally.failed > 0;
}
