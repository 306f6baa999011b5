/* The interpreter against direct C: each operator written down once more the plain way, in the
 * order of rdu/README.md, and compared bit for bit; and against double arithmetic within a bound,
 * so that the order is not the only thing both could have wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/kernels/kernels.h"
#include "rdu/kernels/math.h"
#include "tests/unit/rdu/ir_model.h"

#define SEED 77u
#define T 5   /* tokens */
#define W 160 /* columns: not a multiple of the interpreter's block */

/* One operator as a whole program: layer x -> f(x); runs on random x. */
struct one {
    struct rdu_graph *g;
    uint32_t x;
    struct rdu_program *p;
    struct rng rng;
    struct arena memory;
    struct rdu_weight layers[8], globals[2];
    uint32_t pos[T];
    float in[T * W], out[T * W];
};

static void one_begin(struct one *o, enum rdu_numerics numerics)
{
    memset(o, 0, sizeof(*o));
    rng_init(&o->rng, SEED);
    arena_init(&o->memory, BASE_MIB);
    o->g = rdu_graph_open("one", numerics);
    uint32_t tokens = rdu_graph_begin(o->g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(o->g, rdu_embed(o->g, tokens, rdu_slot(o->g, "e", 7, W)));
    o->x = rdu_graph_begin(o->g, RDU_SECTION_LAYER, W);
    for (int i = 0; i < T * W; i++)
        o->in[i] = model_normal(&o->rng) * (i % 97 == 0 ? 30.0f : 1.0f);
    for (uint32_t i = 0; i < T; i++)
        o->pos[i] = 3 + i * 7;
}

static void one_run(struct one *o, uint32_t result)
{
    struct rdu_program_options opt = {.exec = RDU_EXEC_INTERP, .sockets = 1};
    struct err e = {0};
    rdu_graph_end(o->g, result);
    uint32_t x = rdu_graph_begin(o->g, RDU_SECTION_HEAD, W);
    rdu_graph_end(o->g, rdu_take_outs(o->g, x));
    if (rdu_program_open(&o->g, &opt, &o->p, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    memcpy(o->out, o->in, sizeof(o->in));
    struct rdu_args a = {.n_tokens = T,
                         .n_layers = 1,
                         .pos = o->pos,
                         .layers = o->layers,
                         .globals = o->globals,
                         .x = o->out};
    rdu_interp_section(o->p, &a, RDU_SECTION_LAYER, 0);
}

static void one_end(struct one *o)
{
    rdu_program_close(&o->p);
    arena_done(&o->memory);
}

static const float *vector(struct one *o, uint32_t slot, uint32_t cols)
{
    float *v = arena_alloc(&o->memory, cols * sizeof(*v));
    for (uint32_t i = 0; i < cols; i++)
        v[i] = model_normal(&o->rng);
    o->layers[slot] = (struct rdu_weight){.data = v, .rows = 1, .cols = cols, .type = RDU_F32};
    return v;
}

static void same(const float *want, const float *got, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (memcmp(&want[i], &got[i], sizeof(float)) != 0)
            fail_msg("element %zu: %.9g instead of %.9g (seed %u)", i, (double)got[i],
                     (double)want[i], SEED);
    }
}

static void close_to(double want, float got, double bound, size_t i)
{
    if (!(fabs(want - (double)got) <= bound))
        fail_msg("element %zu: %.9g, in double %.9g, bound %.3g (seed %u)", i, (double)got, want,
                 bound, SEED);
}

/* ---- row-wise operators ---------------------------------------------------------------------- */

static float sum16_of_squares(const float *x, uint32_t n)
{
    float acc[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        acc[i % 16] = fmaf(x[i], x[i], acc[i % 16]);
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++)
            acc[j] += acc[j + half];
    return acc[0];
}

static void check_norm(uint32_t groups)
{
    struct one o;
    one_begin(&o, RDU_NUMERICS_F32);
    uint32_t n = W / groups, slot = rdu_slot(o.g, "n", 1, n);
    const float *w = vector(&o, slot, n);
    one_run(&o, rdu_rms_norm(o.g, o.x, slot, 1e-5f, groups));
    float want[T * W];
    for (uint32_t r = 0; r < T * groups; r++) {
        const float *x = o.in + r * n;
        float inverse = 1.0f / sqrtf(sum16_of_squares(x, n) / (float)n + 1e-5f);
        double ss = 0;
        for (uint32_t i = 0; i < n; i++)
            ss += (double)x[i] * (double)x[i];
        for (uint32_t i = 0; i < n; i++) {
            want[r * n + i] = (x[i] * inverse) * w[i];
            double exact = (double)x[i] / sqrt(ss / n + 1e-5) * (double)w[i];
            close_to(exact, want[r * n + i], 1e-6 * (fabs(exact) + 1e-3), r * n + i);
        }
    }
    same(want, o.out, T * W);
    one_end(&o);
}

static void norm_follows_rule_3(void **state)
{
    check_norm(1);
    check_norm(5);
    check_norm(10);
}

static void pointwise_operators_follow_rule_10(void **state)
{
    for (int which = 0; which < 6; which++) {
        struct one o;
        one_begin(&o, RDU_NUMERICS_F32);
        uint32_t slot = rdu_slot(o.g, "bias", 1, W);
        const float *bias = vector(&o, slot, W);
        uint32_t y = rdu_add_bias(o.g, o.x, slot);
        uint32_t result[6] = {y,
                              rdu_silu_mul(o.g, o.x, y),
                              rdu_gelu_mul(o.g, o.x, y),
                              rdu_add(o.g, y, o.x),
                              rdu_scale(o.g, o.x, 0.3f),
                              rdu_softcap(o.g, o.x, 7.0f)};
        one_run(&o, result[which]);
        float want[T * W];
        for (int i = 0; i < T * W; i++) {
            float g = o.in[i], u = g + bias[i % W];
            float inner = 0.7978845608f * (g + 0.044715f * g * g * g);
            float all[6] = {u,
                            (g / (1.0f + rdu_expf(-g))) * u,
                            0.5f * g * (1.0f + rdu_tanhf(inner)) * u,
                            u + g,
                            g * 0.3f,
                            7.0f * rdu_tanhf(g / 7.0f)};
            double dg = (double)g, du = (double)u;
            double cube = 0.044715 * dg * dg * dg;
            double exact[6] = {du,
                               dg / (1 + exp(-dg)) * du,
                               0.5 * dg * (1 + tanh(0.7978845608 * (dg + cube))) * du,
                               du + dg,
                               dg * 0.3,
                               7 * tanh(dg / 7)};
            want[i] = all[which];
            close_to(exact[which], want[i], 2e-6 * (fabs(exact[which]) + fabs(dg) + 1), (size_t)i);
        }
        same(want, o.out, T * W);
        one_end(&o);
    }
}

static void rope_follows_rule_8(void **state)
{
    const uint32_t heads = 5, hd = 32;
    for (int variant = 0; variant < 4; variant++) {
        enum rdu_rope style = variant & 1 ? RDU_ROPE_HALVES : RDU_ROPE_PAIRS;
        uint32_t rot = variant & 2 ? 20 : 32, half = rot / 2;
        struct one o;
        float c[40 * 16], s[40 * 16], want[T * W];
        one_begin(&o, RDU_NUMERICS_F32);
        for (uint32_t i = 0; i < 40 * half; i++) {
            c[i] = model_normal(&o.rng);
            s[i] = model_normal(&o.rng);
        }
        one_run(&o, rdu_rope(o.g, o.x, rdu_const(o.g, "c", c, 40, half),
                             rdu_const(o.g, "s", s, 40, half), heads, hd, rot, style));
        memcpy(want, o.in, sizeof(want));
        for (uint32_t h = 0; h < T * heads; h++) {
            uint32_t pos = o.pos[h / heads];
            for (uint32_t i = 0; i < half; i++) {
                uint32_t ia = h * hd + (style == RDU_ROPE_PAIRS ? 2 * i : i);
                uint32_t ib = style == RDU_ROPE_PAIRS ? ia + 1 : ia + half;
                float a = o.in[ia], b = o.in[ib], cc = c[pos * half + i], ss = s[pos * half + i];
                want[ia] = fmaf(a, cc, -(b * ss));
                want[ib] = fmaf(a, ss, b * cc);
            }
        }
        same(want, o.out, T * W);
        one_end(&o);
    }
}

/* ---- quantise and matmul --------------------------------------------------------------------- */

/* Rule 4. */
static void quantise(const float *x, uint32_t n, int32_t *q, float *d, float *s)
{
    for (uint32_t b = 0; b < n / 32; b++) {
        float amax = 0;
        int32_t sum = 0;
        for (uint32_t i = 0; i < 32; i++)
            amax = fabsf(x[b * 32 + i]) > amax ? fabsf(x[b * 32 + i]) : amax;
        d[b] = amax < 0x1p-119f ? 0.0f : amax / 127.0f;
        for (uint32_t i = 0; i < 32; i++) {
            float v = rintf(x[b * 32 + i] * (1.0f / d[b]));
            v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
            q[b * 32 + i] = d[b] > 0.0f && v == v ? (int32_t)v : 0;
            sum += q[b * 32 + i];
        }
        s[b] = d[b] * (float)sum;
    }
}

static float dot_f32(const struct rdu_weight *w, uint32_t row, const float *x)
{
    float acc = 0;
    for (uint32_t run = 0; run < w->cols; run += 32) {
        float p = 0;
        for (uint32_t i = run; i < w->cols && i < run + 32; i++)
            p = fmaf(rdu_packed_f32(w->type, w->data, w->cols, row, i), x[i], p);
        acc = acc + p;
    }
    return acc;
}

static float dot_int8(const struct rdu_weight *w, uint32_t row, const int32_t *q, const float *d,
                      const float *s)
{
    float acc = 0;
    for (uint32_t b = 0; b < w->cols / 32; b++) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < 32; i++)
            sum += rdu_packed_q(w->type, w->data, w->cols, row, b * 32 + i) * q[b * 32 + i];
        float wd = rdu_packed_d(w->type, w->data, w->cols, row, b);
        acc = fmaf(wd * d[b], (float)sum, acc);
        if (rdu_type_has_min(w->type))
            acc = fmaf(rdu_packed_m(w->type, w->data, w->cols, row, b), s[b], acc);
    }
    return acc;
}

static void check_matmul(enum rdu_numerics numerics, enum rdu_type type)
{
    struct one o;
    one_begin(&o, numerics);
    uint32_t slot = rdu_slot(o.g, "w", W, W);
    o.in[3] = NAN; /* gives q = 0 in its block, and not-a-number in f32 */
    memset(o.in + W, 0, 32 * sizeof(float));
    struct rdu_weight *w = &o.layers[slot];
    *w = (struct rdu_weight){.rows = W, .cols = W, .type = type};
    w->data = model_matrix(&o.memory, &o.rng, type, W, W, 0.1f);
    one_run(&o, rdu_matmul(o.g, o.x, slot));
    bool int8 = numerics == RDU_NUMERICS_INT8 && rdu_type_has_q8(type);
    for (uint32_t t = int8 ? 0 : 1; t < T; t++) {
        int32_t q[W];
        float d[W / 32], s[W / 32];
        quantise(o.in + t * W, W, q, d, s);
        for (uint32_t r = 0; r < W; r++) {
            float want = int8 ? dot_int8(w, r, q, d, s) : dot_f32(w, r, o.in + t * W);
            same(&want, &o.out[t * W + r], 1);
            double exact = 0, size = 0;
            for (uint32_t i = 0; i < W && t > 0; i++) {
                double v = (double)rdu_packed_f32(type, w->data, W, r, i) * (double)o.in[t * W + i];
                exact += v;
                size += fabs(v);
            }
            if (t > 0) /* int8: half a step of amax / 127 in each activation */
                close_to(exact, want, int8 ? 0.02 * size + 0.5 : 1e-5 * size, r);
        }
    }
    one_end(&o);
}

static void matmul_follows_rules_5_and_6(void **state)
{
    static const enum rdu_type types[] = {RDU_F32,  RDU_F16,  RDU_BF16, RDU_Q4_0,  RDU_Q4_1,
                                          RDU_Q5_0, RDU_Q5_1, RDU_Q8_0, RDU_IQ4_NL};
    for (size_t i = 0; i < BASE_COUNT(types); i++) {
        check_matmul(RDU_NUMERICS_F32, types[i]);
        check_matmul(RDU_NUMERICS_INT8, types[i]);
    }
}

/* ---- attention ------------------------------------------------------------------------------- */

struct attention_case {
    uint32_t heads, kv_heads, head_dim, window;
    float softcap;
    enum rdu_kv_type kv;
    uint32_t past; /* positions appended before the step */
};

/* Rule 9 for one token and head over k and v [positions][head_dim], the values as stored. */
static void attend(const struct attention_case *c, const float *q, const float *k, const float *v,
                   uint32_t pos, float scale, float *out)
{
    uint32_t hd = c->head_dim, first = c->window && pos + 1 > c->window ? pos + 1 - c->window : 0;
    float m = -INFINITY, l = 0, o[64] = {0};
    for (uint32_t block = first / 32; block * 32 <= pos; block++) {
        float s[32], p[32] = {0}, top = -INFINITY, acc[16] = {0}, oc[64] = {0};
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t t = block * 32 + i;
            if (t < first || t > pos)
                continue;
            s[i] = 0;
            for (uint32_t d = 0; d < hd; d++)
                s[i] = fmaf(q[d], k[t * hd + d], s[i]);
            s[i] *= scale;
            if (c->softcap > 0)
                s[i] = c->softcap * rdu_tanhf(s[i] / c->softcap);
            top = s[i] > top ? s[i] : top;
        }
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t t = block * 32 + i;
            if (t < first || t > pos)
                continue;
            p[i] = rdu_expf(s[i] - top);
            for (uint32_t d = 0; d < hd; d++)
                oc[d] = fmaf(p[i], v[t * hd + d], oc[d]);
        }
        for (uint32_t i = 0; i < 32; i++)
            acc[i % 16] += p[i];
        for (uint32_t half = 8; half > 0; half /= 2)
            for (uint32_t j = 0; j < half; j++)
                acc[j] += acc[j + half];
        float now = m > top ? m : top, a = m == -INFINITY ? 0.0f : rdu_expf(m - now);
        float b = rdu_expf(top - now);
        l = fmaf(l, a, acc[0] * b);
        for (uint32_t d = 0; d < hd; d++)
            o[d] = fmaf(o[d], a, oc[d] * b);
        m = now;
    }
    for (uint32_t d = 0; d < hd; d++)
        out[d] = o[d] / l;
}

/* The same in double, without blocks. */
static void attend_double(const struct attention_case *c, const float *q, const float *k,
                          const float *v, uint32_t pos, float scale, double *out)
{
    uint32_t hd = c->head_dim, first = c->window && pos + 1 > c->window ? pos + 1 - c->window : 0;
    double sum = 0;
    memset(out, 0, hd * sizeof(*out));
    for (uint32_t t = first; t <= pos; t++) {
        double s = 0;
        for (uint32_t d = 0; d < hd; d++)
            s += (double)q[d] * (double)k[t * hd + d];
        s *= (double)scale;
        if (c->softcap > 0)
            s = (double)c->softcap * tanh(s / (double)c->softcap);
        double p = exp(s);
        sum += p;
        for (uint32_t d = 0; d < hd; d++)
            out[d] += p * (double)v[t * hd + d];
    }
    for (uint32_t d = 0; d < hd; d++)
        out[d] /= sum;
}

/* x = [q | k | v] is cut apart by three matmuls with unit rows, so that the test knows all three.
 */
struct attention_run {
    struct rdu_program *p;
    struct arena memory;
    struct rng rng;
    struct rdu_weight layers[4];
    uint32_t width, q_width, kv_width;
    void *page[8];
    void **pages[1];
    float *k, *v; /* as stored, [kv head][position][head_dim] */
};

static const void *unit_rows(struct arena *a, uint32_t rows, uint32_t cols, uint32_t first)
{
    float *raw = arena_alloc(a, (size_t)rows * cols * sizeof(float));
    void *packed = arena_alloc(a, rdu_pack_bytes(RDU_F32, rows, cols));
    for (uint32_t r = 0; r < rows; r++)
        raw[r * cols + first + r] = 1.0f;
    rdu_pack_rows(RDU_F32, rows, cols, raw, packed);
    return packed;
}

static void attention_open(struct attention_run *r, const struct attention_case *c)
{
    memset(r, 0, sizeof(*r));
    arena_init(&r->memory, BASE_MIB);
    rng_init(&r->rng, SEED);
    r->q_width = c->heads * c->head_dim;
    r->kv_width = c->kv_heads * c->head_dim;
    r->width = r->q_width + 2 * r->kv_width;
    struct rdu_graph *g = rdu_graph_open("attention", RDU_NUMERICS_F32);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 7, r->width)));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_LAYER, r->width);
    uint32_t q = rdu_matmul(g, x, rdu_slot(g, "q", r->q_width, r->width));
    uint32_t k = rdu_matmul(g, x, rdu_slot(g, "k", r->kv_width, r->width));
    uint32_t v = rdu_matmul(g, x, rdu_slot(g, "v", r->kv_width, r->width));
    struct rdu_attention_options o = {.heads = c->heads,
                                      .kv_heads = c->kv_heads,
                                      .head_dim = c->head_dim,
                                      .scale = 0.25f,
                                      .softcap = c->softcap,
                                      .windowed = c->window > 0};
    uint32_t y = rdu_attention(g, q, k, v, &o);
    rdu_graph_end(g, rdu_matmul(g, y, rdu_slot(g, "o", r->width, r->q_width)));
    x = rdu_graph_begin(g, RDU_SECTION_HEAD, r->width);
    rdu_graph_end(g, rdu_take_outs(g, x));
    struct rdu_program_options opt = {.exec = RDU_EXEC_INTERP, .sockets = 1};
    struct err e = {0};
    if (rdu_program_open(&g, &opt, &r->p, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    const uint32_t first[3] = {0, r->q_width, r->q_width + r->kv_width};
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t rows = i == 0 ? r->q_width : r->kv_width;
        r->layers[i] = (struct rdu_weight){.rows = rows, .cols = r->width, .type = RDU_F32};
        r->layers[i].data = unit_rows(&r->memory, rows, r->width, first[i]);
    }
    float *raw = arena_alloc(&r->memory, (size_t)r->width * r->q_width * sizeof(float));
    for (uint32_t i = 0; i < r->q_width; i++)
        raw[i * r->q_width + i] = 1.0f;
    void *packed = arena_alloc(&r->memory, rdu_pack_bytes(RDU_F32, r->width, r->q_width));
    rdu_pack_rows(RDU_F32, r->width, r->q_width, raw, packed);
    r->layers[3] =
        (struct rdu_weight){.data = packed, .rows = r->width, .cols = r->q_width, .type = RDU_F32};
    size_t bytes = rdu_kv_page_bytes(c->kv, 1, c->kv_heads, c->head_dim, 32);
    for (int i = 0; i < 8; i++) {
        r->page[i] = arena_alloc(&r->memory, bytes);
        memset(r->page[i], 0xff, bytes); /* NaN: reading what was not appended shows */
    }
    r->pages[0] = r->page;
    r->k = arena_alloc(&r->memory, (size_t)c->kv_heads * 256 * c->head_dim * sizeof(float));
    r->v = arena_alloc(&r->memory, (size_t)c->kv_heads * 256 * c->head_dim * sizeof(float));
}

static float stored(enum rdu_kv_type kv, float v)
{
    return kv == RDU_KV_F16 ? rdu_f16_to_f32(rdu_f32_to_f16(v)) : v;
}

/* n tokens from position `pos`: runs the layer and keeps what it appends. */
static void attention_step(struct attention_run *r, const struct attention_case *c, uint32_t pos,
                           uint32_t n, float *x)
{
    uint32_t at[64], seq[64] = {0};
    size_t stride = (r->width + 15u) & ~15u;
    for (uint32_t t = 0; t < n; t++) {
        at[t] = pos + t;
        for (uint32_t i = 0; i < r->width; i++)
            x[t * stride + i] = model_normal(&r->rng);
        for (uint32_t i = 0; i < r->kv_width; i++) {
            size_t to = ((size_t)(i / c->head_dim) * 256 + pos + t) * c->head_dim + i % c->head_dim;
            r->k[to] = stored(c->kv, x[t * stride + r->q_width + i]);
            r->v[to] = stored(c->kv, x[t * stride + r->q_width + r->kv_width + i]);
        }
    }
    struct rdu_args a = {.n_tokens = n,
                         .n_layers = 1,
                         .pos = at,
                         .seq = seq,
                         .layers = r->layers,
                         .kv_pages = (void *const *const *)r->pages,
                         .kv_page_tokens = 32,
                         .kv_type = c->kv,
                         .window = c->window ? &c->window : NULL,
                         .x = x};
    rdu_interp_section(r->p, &a, RDU_SECTION_LAYER, 0);
}

static void check_attention(const struct attention_case *c)
{
    struct attention_run r;
    attention_open(&r, c);
    size_t stride = (r.width + 15u) & ~15u;
    float *x = aligned_alloc(64, 64 * stride * sizeof(float));
    for (uint32_t pos = 0; pos < c->past; pos += 32)
        attention_step(&r, c, pos, BASE_MIN(c->past - pos, 32u), x);
    const uint32_t n = 5;
    struct rng before = r.rng;
    attention_step(&r, c, c->past, n, x);
    for (uint32_t t = 0; t < n; t++) {
        float in[1024];
        for (uint32_t i = 0; i < r.width; i++)
            in[i] = model_normal(&before);
        for (uint32_t h = 0; h < c->heads; h++) {
            float want[64];
            double exact[64];
            size_t kv = (size_t)(h / (c->heads / c->kv_heads)) * 256 * c->head_dim;
            const float *q = in + h * c->head_dim, *got = x + t * stride + h * c->head_dim;
            attend(c, q, r.k + kv, r.v + kv, c->past + t, 0.25f, want);
            attend_double(c, q, r.k + kv, r.v + kv, c->past + t, 0.25f, exact);
            same(want, got, c->head_dim);
            for (uint32_t d = 0; d < c->head_dim; d++)
                close_to(exact[d], got[d], 5e-6, d);
        }
    }
    free(x);
    rdu_program_close(&r.p);
    arena_done(&r.memory);
}

static void attention_follows_rule_9(void **state)
{
    static const struct attention_case cases[] = {
        {.heads = 2, .kv_heads = 2, .head_dim = 16, .kv = RDU_KV_F32},
        {.heads = 6, .kv_heads = 2, .head_dim = 16, .kv = RDU_KV_F16, .past = 31},
        {.heads = 3, .kv_heads = 1, .head_dim = 20, .kv = RDU_KV_F16, .past = 131},
        {.heads = 4, .kv_heads = 4, .head_dim = 64, .kv = RDU_KV_F32, .past = 64, .softcap = 2.0f},
        {.heads = 4, .kv_heads = 2, .head_dim = 16, .kv = RDU_KV_F16, .past = 150, .window = 40},
        {.heads = 4, .kv_heads = 2, .head_dim = 16, .kv = RDU_KV_F32, .past = 150, .window = 1},
        {.heads = 4, .kv_heads = 2, .head_dim = 16, .kv = RDU_KV_F32, .past = 100, .window = 500},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++)
        check_attention(&cases[i]);
}

/* ---- embed and outs -------------------------------------------------------------------------- */

static void embed_gathers_dequantised_rows_and_outs_gather_x(void **state)
{
    static const enum rdu_type types[] = {RDU_F32, RDU_BF16, RDU_Q4_1, RDU_Q6_K, RDU_IQ3_S};
    for (size_t i = 0; i < BASE_COUNT(types); i++) {
        struct arena memory;
        struct rng rng;
        struct err e = {0};
        arena_init(&memory, BASE_MIB);
        rng_init(&rng, SEED);
        struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
        uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
        rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 37, 256)));
        rdu_graph_end(g, rdu_graph_begin(g, RDU_SECTION_LAYER, 256));
        uint32_t x = rdu_graph_begin(g, RDU_SECTION_HEAD, 256);
        rdu_graph_end(g, rdu_take_outs(g, x));
        struct rdu_program_options opt = {.exec = RDU_EXEC_INTERP, .sockets = 1};
        struct rdu_program *p = NULL;
        if (rdu_program_open(&g, &opt, &p, &e) != ERR_OK)
            fail_msg("%s", e.msg);
        struct rdu_weight w = {.rows = 37, .cols = 256, .type = types[i]};
        w.data = model_matrix(&memory, &rng, types[i], 37, 256, 1.0f);
        /* Ids beyond the vocabulary are the caller's mistake: the nearest row, never memory beyond
         * it. */
        const int32_t ids[4] = {36, 0, 12345, -5};
        const uint32_t rows[4] = {36, 0, 36, 0}, outs[2] = {1, 2};
        float out[4 * 256], logits[2 * 256];
        struct rdu_args a = {.n_tokens = 4,
                             .n_outs = 2,
                             .n_layers = 1,
                             .tokens = ids,
                             .outs = outs,
                             .globals = &w,
                             .x = out,
                             .logits = logits,
                             .logits_stride = 256};
        rdu_interp_section(p, &a, RDU_SECTION_EMBED, 0);
        rdu_interp_section(p, &a, RDU_SECTION_LAYER, 0);
        rdu_interp_section(p, &a, RDU_SECTION_HEAD, 0);
        for (uint32_t t = 0; t < 4; t++) {
            for (uint32_t c = 0; c < 256; c++) {
                float want = rdu_packed_f32(types[i], w.data, 256, rows[t], c);
                same(&want, &out[t * 256 + c], 1);
            }
        }
        same(out + 256, logits, 512);
        rdu_program_close(&p);
        arena_done(&memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_follows_rule_3),
        cmocka_unit_test(pointwise_operators_follow_rule_10),
        cmocka_unit_test(rope_follows_rule_8),
        cmocka_unit_test(matmul_follows_rules_5_and_6),
        cmocka_unit_test(attention_follows_rule_9),
        cmocka_unit_test(embed_gathers_dequantised_rows_and_outs_gather_x),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
