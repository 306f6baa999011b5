/* Speed of every leaf beside the limits measured in the same run: int8 and f32 multiply-add from
 * registers, reads from L2, L3 and memory. One thread, on its CPU clock (wall time on a shared
 * machine lies). CSV on stdout.
 *
 *   bench_kernels [--isa scalar|avx2|avx512] [--only SUBSTRING] [--ms N]
 *
 * `only` matches "LEAF SHAPE"; ms is the length of one of the five repetitions, the best counts. */
#include "rdu/kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

struct bench {
    struct rdu_kernels k;
    const char *only;
    double rep_ns;
    double int8_gops, f32_gflops; /* of this instruction set */
    double l2_gbps, l3_gbps, ram_gbps;
    struct rng rng;
};

/* ---- measuring ------------------------------------------------------------------------------- */

typedef void work_fn(void *ctx);

/* ns of one call: best of five repetitions on this thread's CPU clock. */
static double measure(const struct bench *b, work_fn *work, void *ctx)
{
    uint64_t t0 = clock_thread_ns();
    work(ctx);
    double once = (double)(clock_thread_ns() - t0) + 1, best = (double)INFINITY;
    unsigned calls = 1 + (unsigned)(b->rep_ns / once);
    for (unsigned rep = 0; rep < 5; rep++) {
        t0 = clock_thread_ns();
        for (unsigned i = 0; i < calls; i++)
            work(ctx);
        best = fmin(best, (double)(clock_thread_ns() - t0) / calls);
    }
    return best;
}

/* bytes or ops of 0 print as nothing; limit is the rate the share refers to. */
static void report(const struct bench *b, const char *leaf, const char *shape, double ns,
                   double bytes, double ops, double share, const char *limit)
{
    printf("%s,%s,%s,%.0f,", leaf, b->k.isa, shape, ns);
    if (bytes > 0)
        printf("%.2f", bytes / ns);
    printf(",");
    if (ops > 0)
        printf("%.1f", ops / ns);
    printf(",");
    if (limit != NULL)
        printf("%.3f,%s", share, limit);
    else
        printf(",");
    printf("\n");
    fflush(stdout);
}

static bool wanted(const struct bench *b, const char *leaf, const char *shape)
{
    char name[160];
    snprintf(name, sizeof name, "%s %s", leaf, shape);
    return b->only == NULL || strstr(name, b->only) != NULL;
}

/* ---- limits ---------------------------------------------------------------------------------- */

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define PEAK_ROUNDS 20000

struct peak {
    double (*run)(uint32_t rounds, float *sink);
    double ops;
    float sink;
};

static void run_peak(void *ctx)
{
    struct peak *p = ctx;
    p->ops = p->run(PEAK_ROUNDS, &p->sink);
}

static double peak_rate(const struct bench *b, double (*run)(uint32_t rounds, float *sink))
{
    struct peak p = {.run = run};
    double ns = measure(b, run_peak, &p);
    return p.ops / ns;
}

#if defined(__x86_64__)
struct span {
    const uint8_t *data;
    size_t bytes;
    uint64_t sum;
};

__attribute__((target("avx2"))) static void read_span(void *ctx)
{
    struct span *s = ctx;
    __m256i acc[4] = {{0}};
    for (size_t i = 0; i + 128 <= s->bytes; i += 128) {
        UNROLL
        for (unsigned k = 0; k < 4; k++)
            acc[k] = _mm256_xor_si256(
                acc[k], _mm256_loadu_si256((const __m256i *)(const void *)(s->data + i + 32 * k)));
    }
    acc[0] = _mm256_xor_si256(_mm256_xor_si256(acc[0], acc[1]), _mm256_xor_si256(acc[2], acc[3]));
    s->sum = (uint64_t)_mm256_extract_epi64(acc[0], 0);
}

static double read_rate(const struct bench *b, const uint8_t *data, size_t bytes)
{
    struct span s = {data, bytes, 0};
    return (double)bytes / measure(b, read_span, &s);
}

static void measure_reads(struct bench *b)
{
    if (!__builtin_cpu_supports("avx2"))
        return;
    size_t bytes = 192 * BASE_MIB;
    uint8_t *data = mem_alloc(bytes);
    memset(data, 1, bytes);
    b->l2_gbps = read_rate(b, data, 512 * BASE_KIB);
    b->l3_gbps = read_rate(b, data, 8 * BASE_MIB);
    b->ram_gbps = read_rate(b, data, bytes);
    free(data);
}
#else
static void measure_reads(struct bench *b)
{
    (void)b;
}
#endif

static void measure_limits(struct bench *b)
{
    b->int8_gops = peak_rate(b, b->k.peak_int8);
    b->f32_gflops = peak_rate(b, b->k.peak_f32);
    measure_reads(b);
}

static void print_limits(const struct bench *b)
{
    printf(
        "# isa %s; per core: int8 %.0f GOP/s, f32 %.1f GFLOP/s; read L2 %.1f, L3 %.1f, memory %.1f "
        "GB/s\n",
        b->k.isa, b->int8_gops, b->f32_gflops, b->l2_gbps, b->l3_gbps, b->ram_gbps);
    printf("leaf,isa,shape,ns,gb_per_s,gop_per_s,share,limit\n");
}

/* ---- linear ---------------------------------------------------------------------------------- */

struct linear {
    const struct rdu_kernels *k;
    enum rdu_type type;
    bool q8;
    uint32_t rows, cols, tokens;
    uint8_t *w;
    struct rdu_q8 x;
    float *f, *y;
};

static void run_linear(void *ctx)
{
    struct linear *l = ctx;
    if (l->q8)
        l->k->mm_q8[l->type](l->w, l->cols, 0, l->rows / 8, &l->x, l->tokens, l->y, l->rows, false);
    else
        l->k->mm_f32[l->type](l->w, l->cols, 0, l->rows / 8, l->f, l->cols, l->tokens, l->y,
                              l->rows, false);
}

static void *aligned(size_t bytes)
{
    void *p;
    if (posix_memalign(&p, 64, bytes) != 0)
        abort();
    memset(p, 0, bytes);
    return p;
}

/* Packed random weights whose f16 scales are ordinary numbers: Q8_0 rows requantised where the type
 * can be written, else random bytes with small exponents. */
static uint8_t *random_weights(struct bench *b, enum rdu_type type, uint32_t rows, uint32_t cols)
{
    size_t bytes = rdu_pack_bytes(type, rows, cols);
    uint8_t *w = aligned(bytes);
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        /* Halfwords 0x00xx..0x2fxx: no infinities wherever the scales are. */
        uint64_t v = rng_u64(&b->rng) & 0x2fff2fff2fff2fffu;
        memcpy(w + i, &v, 8);
    }
    return w;
}

static void bench_linear(struct bench *b, enum rdu_type type, bool q8, uint32_t rows, uint32_t cols,
                         uint32_t tokens)
{
    char leaf[64], shape[64];
    const char *name = rdu_type_info(type)->name;
    snprintf(leaf, sizeof leaf, "mm_%s_%s_t%u", q8 ? "q8" : "f32", name, tokens);
    snprintf(shape, sizeof shape, "%ux%u", rows, cols);
    if (!wanted(b, leaf, shape) || (q8 && b->k.mm_q8[type] == NULL))
        return;
    struct linear l = {
        &b->k, type, q8, rows, cols, tokens, .w = random_weights(b, type, rows, cols)};
    l.x.q_stride = ((size_t)cols + 63) / 64 * 64;
    l.x.b_stride = ((size_t)cols / 32 + 15) / 16 * 16;
    l.x.q = aligned(l.x.q_stride * tokens);
    l.x.d = aligned(l.x.b_stride * tokens * sizeof(float));
    l.x.s = aligned(l.x.b_stride * tokens * sizeof(float));
    l.f = aligned((size_t)cols * tokens * sizeof(float));
    l.y = aligned((size_t)rows * tokens * sizeof(float));
    for (size_t i = 0; i < (size_t)cols * tokens; i++)
        l.f[i] = (float)(rng_f64(&b->rng) * 2 - 1);
    for (uint32_t t = 0; t < tokens; t++)
        b->k.quantize(l.f + (size_t)t * cols, cols, l.x.q + t * l.x.q_stride,
                      l.x.d + t * l.x.b_stride, l.x.s + t * l.x.b_stride);
    double ns = measure(b, run_linear, &l), bytes = (double)rdu_pack_bytes(type, rows, cols);
    double ops = 2.0 * rows * cols * tokens, peak = q8 ? b->int8_gops : b->f32_gflops;
    double rate = bytes > 24e6 ? b->ram_gbps : bytes > 768e3 ? b->l3_gbps : b->l2_gbps;
    const char *level = bytes > 24e6 ? "memory" : bytes > 768e3 ? "L3" : "L2";
    if (ops / peak > bytes / rate)
        report(b, leaf, shape, ns, bytes, ops, ops / ns / peak, q8 ? "int8" : "f32");
    else
        report(b, leaf, shape, ns, bytes, ops, bytes / ns / rate, level);
    free(l.w);
    free(l.x.q);
    free(l.x.d);
    free(l.x.s);
    free(l.f);
    free(l.y);
}

static void bench_linears(struct bench *b)
{
    static const enum rdu_type q8_types[] = {RDU_Q4_1, RDU_Q8_0, RDU_Q4_0, RDU_Q5_0, RDU_Q5_1,
                                             RDU_Q4_K, RDU_Q5_K, RDU_Q6_K, RDU_Q3_K, RDU_Q2_K};
    static const enum rdu_type f32_types[] = {RDU_F32,     RDU_F16,   RDU_BF16,  RDU_Q4_1,
                                              RDU_Q8_0,    RDU_Q4_K,  RDU_Q6_K,  RDU_IQ4_XS,
                                              RDU_IQ2_XXS, RDU_IQ3_S, RDU_IQ1_S, RDU_TQ1_0};
    static const uint32_t tokens[] = {1, 2, 4, 8, 16, 32, 128, 512};
    for (unsigned i = 0; i < BASE_COUNT(q8_types); i++) {
        /* L2, L3 and memory for one token; then a layer-sized matrix. */
        bench_linear(b, q8_types[i], true, 576, 1536, 1);
        bench_linear(b, q8_types[i], true, 8192, 1536, 1);
        bench_linear(b, q8_types[i], true, 49152, 4096, 1);
        for (unsigned t = 1; t < BASE_COUNT(tokens); t++)
            bench_linear(b, q8_types[i], true, 1536, 1536, tokens[t]);
        bench_linear(b, q8_types[i], true, 4096, 4096, 128);
    }
    for (unsigned i = 0; i < BASE_COUNT(f32_types); i++) {
        bench_linear(b, f32_types[i], false, 1536, 768, 1);
        bench_linear(b, f32_types[i], false, 16384, 4096, 1);
        for (unsigned t = 1; t < BASE_COUNT(tokens); t++)
            bench_linear(b, f32_types[i], false, 1536, 768, tokens[t]);
    }
    /* The factors of an adapter of rank 8. */
    for (unsigned t = 0; t < BASE_COUNT(tokens); t += 3) {
        bench_linear(b, RDU_Q8_0, false, 8, 576, tokens[t]);
        bench_linear(b, RDU_F16, false, 8, 576, tokens[t]);
        bench_linear(b, RDU_F16, false, 576, 8, tokens[t]);
    }
}

/* ---- attention ---------------------------------------------------------------------------------
 */

#define ATTN_TOKENS_MAX 8

struct attention {
    const struct rdu_kernels *k;
    enum rdu_kv_type type;
    uint32_t tokens;
    struct rdu_attn_args a[ATTN_TOKENS_MAX];
};

static void run_attention(void *ctx)
{
    struct attention *at = ctx;
    for (uint32_t i = 0; i < at->tokens * at->a[0].heads; i++) {
        at->a[0].m[i] = -INFINITY;
        at->a[0].l[i] = 0;
    }
    at->k->attn_tile[at->type](at->a, at->tokens);
}

static void bench_attention(struct bench *b, enum rdu_kv_type type, uint32_t heads,
                            uint32_t head_dim, uint32_t context, uint32_t tokens)
{
    char shape[64], leaf[64];
    snprintf(leaf, sizeof leaf, "attn_%s_t%u", type == RDU_KV_F16 ? "f16" : "f32", tokens);
    snprintf(shape, sizeof shape, "heads %u dim %u context %u", heads, head_dim, context);
    if (!wanted(b, leaf, shape))
        return;
    uint32_t blocks = (context + 31) / 32;
    size_t block_bytes = 64 * (size_t)head_dim * (type == RDU_KV_F32 ? 4 : 2);
    const void **block = mem_array(blocks, sizeof *block);
    float *row = mem_array(head_dim, sizeof *row);
    uint8_t *memory = aligned(block_bytes * blocks);
    for (uint32_t p = 0; p < blocks * 32; p++) {
        block[p / 32] = memory + p / 32 * block_bytes;
        for (uint32_t d = 0; d < head_dim; d++)
            row[d] = (float)(rng_f64(&b->rng) * 2 - 1);
        b->k.kv_store[type](memory + p / 32 * block_bytes, p % 32, head_dim, row, row);
    }
    struct attention at = {&b->k, type, tokens, .a = {{0}}};
    size_t width = (size_t)heads * head_dim;
    float *q = mem_array(tokens * width, sizeof *q), *o = mem_array(tokens * width, sizeof *o);
    float *m = mem_array((size_t)tokens * heads, sizeof *m),
          *l = mem_array((size_t)tokens * heads, sizeof *l);
    for (size_t i = 0; i < tokens * width; i++)
        q[i] = (float)(rng_f64(&b->rng) * 2 - 1);
    for (uint32_t t = 0; t < tokens; t++)
        at.a[t] = (struct rdu_attn_args){
            .q = q + t * width,
            .block = block,
            .heads = heads,
            .head_dim = head_dim,
            .block_to = blocks,
            .pos_to = context - tokens + 1 + t,
            .scale = 0.125f,
            .m = m + t * heads,
            .l = l + t * heads,
            .o = o + t * width,
        };
    double ns = measure(b, run_attention, &at), ops = 4.0 * (double)width * context * tokens;
    report(b, leaf, shape, ns, (double)block_bytes * blocks, ops, ops / ns / b->f32_gflops, "f32");
    free(block);
    free(row);
    free(memory);
    free(q);
    free(m);
    free(l);
    free(o);
}

/* ---- rows --------------------------------------------------------------------------------------
 */

struct row {
    const struct rdu_kernels *k;
    uint32_t n;
    float *x, *w, *y, *d, *s;
    int8_t *q;
};

static void run_norm(void *ctx)
{
    struct row *r = ctx;
    r->k->rms_norm(r->x, r->w, 1e-5f, r->n, r->y);
}

static void run_quantize(void *ctx)
{
    struct row *r = ctx;
    r->k->quantize(r->x, r->n, r->q, r->d, r->s);
}

static void run_silu(void *ctx)
{
    struct row *r = ctx;
    r->k->silu_mul(r->x, r->w, r->n, r->y);
}

static void run_gelu(void *ctx)
{
    struct row *r = ctx;
    r->k->gelu_mul(r->x, r->w, r->n, r->y);
}

static void run_add(void *ctx)
{
    struct row *r = ctx;
    r->k->add(r->x, r->w, r->n, r->y);
}

static void run_rope_pairs(void *ctx)
{
    struct row *r = ctx;
    r->k->rope(r->x, r->w, r->w + 64, r->n / 64, 64, 64, RDU_ROPE_PAIRS);
}

static void run_rope_halves(void *ctx)
{
    struct row *r = ctx;
    r->k->rope(r->x, r->w, r->w + 64, r->n / 64, 64, 64, RDU_ROPE_HALVES);
}

static void run_argmax(void *ctx)
{
    struct row *r = ctx;
    uint32_t idx;
    float max;
    r->k->argmax(r->x, r->n, &idx, &max);
}

static void bench_rows(struct bench *b)
{
    static const struct {
        const char *name;
        work_fn *work;
        uint32_t n;
        double bytes_per_elem;
    } ops[] = {
        {"rms_norm", run_norm, 576, 12},
        {"rms_norm", run_norm, 4096, 12},
        {"quantize", run_quantize, 576, 5},
        {"quantize", run_quantize, 4096, 5},
        {"silu_mul", run_silu, 1536, 12},
        {"gelu_mul", run_gelu, 1536, 12},
        {"add", run_add, 576, 12},
        {"rope_pairs", run_rope_pairs, 576, 8},
        {"rope_halves", run_rope_halves, 576, 8},
        {"argmax", run_argmax, 49152, 4},
    };
    for (unsigned i = 0; i < BASE_COUNT(ops); i++) {
        char shape[32];
        uint32_t n = ops[i].n;
        snprintf(shape, sizeof shape, "n %u", n);
        if (!wanted(b, ops[i].name, shape))
            continue;
        struct row r = {&b->k,          n,          aligned(n * 4), aligned(n * 4),
                        aligned(n * 4), aligned(n), aligned(n),     aligned(n)};
        for (uint32_t k = 0; k < n; k++) {
            r.x[k] = (float)(rng_f64(&b->rng) * 2 - 1);
            r.w[k] = (float)(rng_f64(&b->rng) * 0.5);
        }
        report(b, ops[i].name, shape, measure(b, ops[i].work, &r), ops[i].bytes_per_elem * n, 0, 0,
               NULL);
        free(r.x);
        free(r.w);
        free(r.y);
        free(r.d);
        free(r.s);
        free(r.q);
    }
}

int main(int argc, char **argv)
{
    struct bench b = {.rep_ns = 30e6};
    const char *isa = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--isa") == 0)
            isa = argv[i + 1];
        else if (strcmp(argv[i], "--only") == 0)
            b.only = argv[i + 1];
        else if (strcmp(argv[i], "--ms") == 0)
            b.rep_ns = strtod(argv[i + 1], NULL) * 1e6;
        else
            argc = 0;
    }
    struct err e;
    if (argc % 2 != 1) {
        fprintf(stderr, "usage: bench_kernels [--isa scalar|avx2|avx512] [--only TEXT] [--ms N]\n");
        return 2;
    }
    if (rdu_kernels_init(&b.k, isa, &e) != ERR_OK) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    rng_init(&b.rng, 1);
    measure_limits(&b);
    print_limits(&b);
    bench_linears(&b);
    static const uint32_t shapes[][2] = {{3, 64}, {1, 64}, {2, 64}, {4, 128}, {7, 64}};
    for (unsigned i = 0; i < BASE_COUNT(shapes); i++)
        for (uint32_t tokens = 1; tokens <= ATTN_TOKENS_MAX; tokens *= 2)
            bench_attention(&b, RDU_KV_F16, shapes[i][0], shapes[i][1], 512, tokens);
    bench_attention(&b, RDU_KV_F16, 3, 64, 4096, 1);
    bench_attention(&b, RDU_KV_F32, 3, 64, 512, 1);
    bench_rows(&b);
    return 0;
}
