/* Passes keep the meaning: seeded random loop bodies and graphs give the same bits before and after
 * simplification, motion, fusion, and on planned buffers. The seed is printed when one does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/interp.h"
#include "rdu/opt/opt.h"
#include "tests/unit/rdu/ir_model.h"

#define W 48
#define T 6 /* tokens of the large steps */

/* ---- random bodies --------------------------------------------------------------------------- */

/* Values in sight by type; reduces push and pop. */
struct pool {
    struct ir_body b;
    struct rng rng;
    uint32_t f[256], i[256], c[256], nf, ni, nc;
    uint32_t operands;
};

static uint32_t pick(struct pool *p, const uint32_t *from, uint32_t count)
{
    /* Recent values more often: bodies become deep. */
    uint32_t back =
        (uint32_t)rng_below(&p->rng, rng_below(&p->rng, 4) ? BASE_MIN(count, 6u) : count);
    return from[count - 1 - back];
}

static void keep(struct pool *p, uint32_t v)
{
    uint32_t type = p->b.ops[v].type;
    if (type == IR_TYPE_F32 && p->nf < 256)
        p->f[p->nf++] = v;
    else if (type == IR_TYPE_I32 && p->ni < 256)
        p->i[p->ni++] = v;
    else if (type == IR_TYPE_BOOL && p->nc < 256)
        p->c[p->nc++] = v;
}

static uint32_t any_f(struct pool *p)
{
    return pick(p, p->f, p->nf);
}

static uint32_t any_i(struct pool *p)
{
    return pick(p, p->i, p->ni);
}

static float any_float(struct pool *p)
{
    static const float special[] = {0.0f, -0.0f, 1.0f, -1.0f,  2.0f,
                                    0.5f, 32.0f, 3.0f, 1e-30f, 1e30f};
    return rng_below(&p->rng, 2) ? special[rng_below(&p->rng, BASE_COUNT(special))]
                                 : model_normal(&p->rng);
}

static uint32_t random_load(struct pool *p)
{
    uint32_t operand = (uint32_t)rng_below(&p->rng, p->operands);
    uint32_t row = ir_index(&p->b, 0), col = ir_clamp(&p->b, any_i(p), W);
    return ir_load2(&p->b, operand, IR_TYPE_F32, row, col);
}

static void random_op(struct pool *p, int depth);

static void random_reduce(struct pool *p, int depth)
{
    struct ir_reduce_spec s = {.count_value = IR_NONE, .carried = 1};
    s.kind = (enum ir_reduce)rng_below(&p->rng, 3);
    bool ints = s.kind == IR_REDUCE_SEQ && rng_below(&p->rng, 3) == 0;
    s.count = 1 + (int32_t)rng_below(&p->rng, 20);
    if (rng_below(&p->rng, 4) == 0) {
        s.count = 0; /* by value, the same for all lanes */
        s.count_value = ir_i32(&p->b, (int32_t)rng_below(&p->rng, 5));
    }
    if (s.kind == IR_REDUCE_SEQ)
        s.carried = 1 + (uint32_t)rng_below(&p->rng, 3);
    for (uint32_t k = 0; k < s.carried; k++)
        s.init[k] = s.kind == IR_REDUCE_SUM16 ? ir_f32(&p->b, 0.0f)
                    : ints && k == 0          ? any_i(p)
                                              : any_f(p);
    uint32_t nf = p->nf, ni = p->ni, nc = p->nc, r = ir_reduce_begin(&p->b, &s);
    keep(p, ir_reduce_index(&p->b, r));
    for (uint32_t k = 0; k < s.carried; k++)
        keep(p, ir_reduce_carried(&p->b, r, k));
    for (uint64_t n = 2 + rng_below(&p->rng, 8); n > 0; n--)
        random_op(p, depth + 1);
    uint32_t yield[IR_CARRIED] = {0};
    for (uint32_t k = 0; k < s.carried; k++)
        yield[k] = ints && k == 0 ? any_i(p) : any_f(p);
    ir_reduce_end(&p->b, r, yield);
    p->nf = nf;
    p->ni = ni;
    p->nc = nc;
    for (uint32_t k = 0; k < s.carried; k++)
        keep(p, ir_reduce_result(&p->b, r, k));
}

static void random_op(struct pool *p, int depth)
{
    static const enum ir_code two[] = {IR_ADD, IR_SUB, IR_MUL, IR_DIV, IR_MAX, IR_MIN};
    static const enum ir_code one[] = {IR_NEG, IR_ABS, IR_SQRT, IR_EXP, IR_TANH, IR_LOG, IR_RINT};
    static const enum ir_code test[] = {IR_LT, IR_LE, IR_EQ};
    switch (rng_below(&p->rng, 13)) {
    case 0:
        keep(p, ir_f32(&p->b, any_float(p)));
        break;
    case 1:
        keep(p, ir_i32(&p->b, (int32_t)rng_below(&p->rng, 5) - 1));
        break;
    case 2:
    case 3:
        keep(p, ir_op2(&p->b, two[rng_below(&p->rng, 6)], any_f(p), any_f(p)));
        break;
    case 4:
        keep(p, ir_op2(&p->b, rng_below(&p->rng, 7) ? two[rng_below(&p->rng, 6)] : IR_MOD, any_i(p),
                       any_i(p)));
        break;
    case 5:
        keep(p, ir_op1(&p->b, one[rng_below(&p->rng, 6)], any_f(p)));
        break;
    case 6:
        keep(p, ir_fma(&p->b, any_f(p), any_f(p), any_f(p)));
        break;
    case 7:
        keep(p, rng_below(&p->rng, 2)
                    ? ir_op2(&p->b, test[rng_below(&p->rng, 3)], any_f(p), any_f(p))
                    : ir_op2(&p->b, test[rng_below(&p->rng, 3)], any_i(p), any_i(p)));
        break;
    case 8:
        if (p->nc > 0)
            keep(p, rng_below(&p->rng, 3)
                        ? ir_select(&p->b, pick(p, p->c, p->nc), any_f(p), any_f(p))
                        : ir_select(&p->b, pick(p, p->c, p->nc), any_i(p), any_i(p)));
        break;
    case 9:
        if (p->nc > 0)
            keep(p, ir_op2(&p->b, rng_below(&p->rng, 2) ? IR_AND : IR_OR, pick(p, p->c, p->nc),
                           pick(p, p->c, p->nc)));
        break;
    case 10:
        keep(p, ir_op1(&p->b, IR_TO_F32, any_i(p)));
        break;
    case 11:
        keep(p, random_load(p));
        break;
    default:
        if (depth < 3 && p->b.count < 400)
            random_reduce(p, depth);
    }
}

static struct ir_body random_body(uint64_t seed, struct ir_shape shape, uint32_t operands)
{
    struct pool p;
    memset(&p, 0, sizeof(p));
    rng_init(&p.rng, seed);
    ir_body_init(&p.b);
    p.operands = operands;
    for (uint32_t d = 0; d < shape.rank; d++)
        keep(&p, ir_index(&p.b, d));
    keep(&p, random_load(&p));
    for (uint64_t n = 5 + rng_below(&p.rng, 40); n > 0; n--)
        random_op(&p, 0);
    uint32_t v = any_f(&p);
    /* Finite and of a sane size, or everything downstream becomes not-a-number and shows nothing.
     */
    uint32_t finite = ir_op2(&p.b, IR_LT, ir_op1(&p.b, IR_ABS, v), ir_f32(&p.b, 1e6f));
    p.b.result = ir_select(&p.b, finite, v, random_load(&p));
    return p.b;
}

/* ---- random graphs --------------------------------------------------------------------------- */

static struct ir_shape random_shape(struct rng *r)
{
    if (rng_below(r, 2))
        return ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, W);
    int32_t mid = (int32_t[]){1, 2, 3, 6}[rng_below(r, 4)];
    return ir_shape3(IR_ELEM_F32, RDU_DIM_TOKENS, mid, W / mid);
}

static uint32_t random_value(struct rng *r, const uint32_t *v, uint32_t count)
{
    return v[count - 1 - rng_below(r, BASE_MIN(count, 4u))];
}

/* A random mixture of operators and random loops over [tokens, W] values. */
static uint32_t random_section(struct rdu_graph *g, struct rng *r, uint32_t x, uint32_t table,
                               bool attention)
{
    uint32_t v[64] = {x}, count = 1;
    char name[16];
    for (uint64_t n = 3 + rng_below(r, 14); n > 0; n--) {
        uint32_t a = random_value(r, v, count), b = random_value(r, v, count);
        snprintf(name, sizeof(name), "w%u", (unsigned)rng_below(r, 4));
        switch (rng_below(r, 9)) {
        case 0:
            v[count++] = rdu_add(g, a, b);
            break;
        case 1:
            v[count++] = rdu_matmul(g, a, rdu_slot(g, name, W, W));
            break;
        case 2:
            v[count++] = rdu_rms_norm(g, a, rdu_slot(g, "n", 1, W), 1e-5f, 1);
            break;
        case 3:
            b = rdu_matmul(g, a, rdu_slot(g, "gate", W, W));
            v[count++] = rdu_silu_mul(g, b, rdu_matmul(g, a, rdu_slot(g, "up", W, W)));
            break;
        case 4:
            v[count++] = rdu_scale(g, a, rng_below(r, 2) ? 1.0f : 0.5f);
            break;
        case 5:
            v[count++] = rdu_softcap(g, a, 5.0f);
            break;
        case 6:
            v[count++] = rdu_rope(g, a, table, table, 3, 16, 16, RDU_ROPE_HALVES);
            break;
        case 7:
            if (attention) {
                struct rdu_attention_options o = {
                    .heads = 3, .kv_heads = 3, .head_dim = 16, .scale = 0.25f};
                uint32_t k =
                    rng_below(r, 2) ? b : rdu_rope(g, b, table, table, 3, 16, 16, RDU_ROPE_HALVES);
                uint32_t value = random_value(r, v, count);
                v[count++] = rdu_attention(g, a, k, value, &o);
                attention = false;
            }
            break;
        default: {
            struct ir_shape shape = random_shape(r);
            const uint32_t operand[2] = {a, b};
            struct ir_body body = random_body(rng_u64(r), shape, 2);
            v[count++] = ir_node_loop(g, shape, operand, 2, &body, NULL);
        }
        }
    }
    return v[count - 1 - rng_below(r, 2) % count];
}

static struct rdu_graph *random_graph(uint64_t seed, enum rdu_numerics numerics)
{
    struct rng r;
    rng_init(&r, seed);
    float table[64 * 8];
    for (size_t i = 0; i < BASE_COUNT(table); i++)
        table[i] = model_normal(&r);
    struct rdu_graph *g = rdu_graph_open("random", numerics);
    uint32_t t = rdu_const(g, "table", table, 64, 8);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    uint32_t x = rdu_embed(g, tokens, rdu_slot(g, "e", 23, W));
    if (rng_below(&r, 2))
        x = rdu_scale(g, x, 2.0f);
    rdu_graph_end(g, x);
    x = rdu_graph_begin(g, RDU_SECTION_LAYER, W);
    rdu_graph_end(g, random_section(g, &r, x, t, true));
    x = rdu_graph_begin(g, RDU_SECTION_HEAD, W);
    bool late = rng_below(&r, 2); /* rows chosen after the work: motion has something to do */
    if (!late)
        x = rdu_take_outs(g, x);
    x = rdu_rms_norm(g, x, rdu_slot(g, "n", 1, W), 1e-5f, 1);
    x = rdu_matmul(g, x, rdu_slot(g, "e", 23, W));
    if (rng_below(&r, 2))
        x = rdu_softcap(g, x, 3.0f);
    rdu_graph_end(g, late ? rdu_take_outs(g, x) : x);
    return g;
}

/* Weights in slots of a random graph; every level runs the same. */
struct setup {
    struct arena memory;
    struct rng rng;
    struct rdu_weight globals[8], layers[2 * 16];
    void *page[1];
    void **pages[1];
    size_t page_bytes;
    uint32_t tokens; /* 6, or 3: the node runs small steps another way */
};

static void setup_open(struct setup *s, const struct rdu_program *p, uint64_t seed)
{
    memset(s, 0, sizeof(*s));
    arena_init(&s->memory, BASE_MIB);
    rng_init(&s->rng, seed);
    for (int scope = 0; scope < 2; scope++) {
        enum rdu_section section = scope ? RDU_SECTION_LAYER : RDU_SECTION_HEAD;
        uint32_t slots = rdu_program_slots(p, section);
        for (uint32_t i = 0; i < slots * (scope ? 2u : 1u); i++) {
            const struct rdu_slot_info *info = rdu_program_slot(p, section, i % slots);
            struct rdu_weight *w = scope ? &s->layers[i] : &s->globals[i];
            *w = (struct rdu_weight){.rows = info->rows, .cols = info->cols, .type = RDU_F32};
            if (info->rows > 1) {
                w->type = info->cols % 32 == 0 ? RDU_Q8_0 : RDU_F16;
                w->data = model_matrix(&s->memory, &s->rng, w->type, w->rows, w->cols, 0.15f);
                continue;
            }
            float *v = arena_alloc(&s->memory, info->cols * sizeof(*v));
            for (uint32_t k = 0; k < info->cols; k++)
                v[k] = model_normal(&s->rng);
            w->data = v;
        }
    }
    s->page_bytes = rdu_kv_page_bytes(RDU_KV_F16, 2, 3, 16, 64);
    s->page[0] = arena_alloc(&s->memory, s->page_bytes);
    s->pages[0] = s->page;
    s->tokens = seed % 3 == 0 ? T / 2 : T;
}

/* Logits of the tokens through two layers, outs 2 of them. node NULL = interpreter. */
static void setup_run(struct setup *s, const struct rdu_program *p, struct rdu_node *node,
                      float *logits)
{
    static const int32_t tokens[T] = {3, 1, 4, 1, 5, 22};
    static const uint32_t pos[T] = {0, 1, 2, 3, 4, 5}, seq[T] = {0};
    const uint32_t outs[2] = {1, s->tokens - 1};
    float *x = aligned_alloc(64, T * W * sizeof(float));
    struct rdu_args a = {.n_tokens = s->tokens,
                         .n_outs = 2,
                         .n_layers = 2,
                         .tokens = tokens,
                         .pos = pos,
                         .seq = seq,
                         .kv_pages = (void *const *const *)s->pages,
                         .kv_page_tokens = 64,
                         .outs = outs,
                         .globals = s->globals,
                         .layers = s->layers,
                         .x = x,
                         .logits = logits,
                         .logits_stride = 24};
    memset(s->page[0], 0, s->page_bytes);
    if (node) {
        struct err e = {0};
        if (rdu_node_prepare(node, p, s->tokens, 2, &e) != ERR_OK)
            fail_msg("prepare: %s", e.msg);
        rdu_node_run(node, p, &a, 0, 4);
    } else {
        rdu_interp_section(p, &a, RDU_SECTION_EMBED, 0);
        rdu_interp_section(p, &a, RDU_SECTION_LAYER, 0);
        rdu_interp_section(p, &a, RDU_SECTION_LAYER, 1);
        rdu_interp_section(p, &a, RDU_SECTION_HEAD, 0);
    }
    free(x);
}

/* The graph as it was built, through the interpreter only: no pass has touched it. */
static struct rdu_program *untouched(struct rdu_graph *g)
{
    struct rdu_program *p = mem_alloc(sizeof(*p));
    struct err e = {0};
    if (ir_verify(g, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    p->graph = g;
    p->numerics = g->numerics;
    p->opt.sockets = 8;
    p->global_slots = g->slots[0];
    p->layer_slots = g->slots[1];
    p->width = W;
    p->vocab = 23;
    ir_exec_prepare(g);
    return p;
}

static bool same_bits(const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        bool nan = isnan(a[i]) && isnan(b[i]); /* which not-a-number is nobody's promise */
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0 && !nan)
            return false;
    }
    return true;
}

static void check_seed(uint64_t seed, uint32_t *interesting)
{
    enum rdu_numerics numerics = seed & 1 ? RDU_NUMERICS_INT8 : RDU_NUMERICS_F32;
    struct rdu_program *plain = untouched(random_graph(seed, numerics));
    struct setup s;
    float want[2 * 24] = {0}, got[2 * 24] = {0};
    struct err e = {0};
    setup_open(&s, plain, seed);
    setup_run(&s, plain, NULL, want);
    *interesting += !isnan(want[0]) && want[0] != want[1];
    for (int exec = RDU_EXEC_INTERP; exec <= RDU_EXEC_FUSED; exec++) {
        struct rdu_graph *g = random_graph(seed, numerics);
        struct rdu_program_options o = {.exec = (enum rdu_exec)exec, .sockets = 8};
        struct rdu_program *p = NULL;
        if (rdu_program_open(&g, &o, &p, &e) != ERR_OK)
            fail_msg("seed %llu: %s", (unsigned long long)seed, e.msg);
        struct rdu_node *node = NULL;
        struct rdu_node_options no = {
            .sockets = 8, .threads = 1 + (uint32_t)(seed % 2), .max_tokens = T};
        if (exec != RDU_EXEC_INTERP && rdu_node_open(&no, &node, &e) != ERR_OK)
            fail_msg("node: %s", e.msg);
        memset(got, 0, sizeof(got));
        setup_run(&s, p, node, got);
        if (!same_bits(want, got, 23) || !same_bits(want + 24, got + 24, 23))
            fail_msg("seed %llu: level %d gives other logits", (unsigned long long)seed, exec);
        rdu_node_close(&node);
        rdu_program_close(&p);
    }
    rdu_program_close(&plain);
    arena_done(&s.memory);
}

static void passes_keep_the_bits_of_random_graphs(void **state)
{
    uint32_t interesting = 0;
    const uint32_t seeds = 300;
    for (uint64_t seed = 1; seed <= seeds; seed++)
        check_seed(seed, &interesting);
    assert_true(interesting > seeds / 2); /* most graphs compute real numbers */
}

/* ---- damaged bodies ------------------------------------------------------------------------- */

/* One field of one op set to something near, something far, or nonsense. */
static void damage(struct ir_body *b, struct rng *r)
{
    struct ir_op *op = &b->ops[rng_below(r, b->count)];
    uint32_t value = (uint32_t)rng_below(r, 4) == 0 ? (uint32_t)rng_u64(r)
                                                    : (uint32_t)rng_below(r, b->count + 2);
    switch (rng_below(r, 8)) {
    case 0:
        op->code = (uint32_t)rng_below(r, IR_CODES + 1);
        break;
    case 1:
        op->type = (uint32_t)rng_below(r, 5);
        break;
    case 2:
        op->imm = (int32_t)rng_below(r, 100) - 20;
        break;
    case 3:
        op->parent = rng_below(r, 3) ? value : IR_NONE;
        break;
    case 4:
        op->end = value;
        break;
    case 5:
        op->yield[rng_below(r, IR_CARRIED)] = value;
        break;
    case 6:
        op->carried = (uint32_t)rng_below(r, 5);
        break;
    default:
        op->arg[rng_below(r, 5)] = rng_below(r, 5) ? value : IR_NONE;
    }
}

/* Runs the body over the first T rows of x and y. */
static void run_body(const struct ir_body *b, const struct ir_shape *shape,
                     const struct rdu_graph *g, float *x, float *y, float *out)
{
    struct ir_exec_loop l;
    struct rdu_args args = {.n_tokens = T, .n_outs = 2};
    struct ir_env e = {.graph = g, .args = &args, .section = RDU_SECTION_HEAD, .n_tokens = T};
    struct ir_tensor t[3] = {
        {x, W, 1, IR_ELEM_F32, NULL}, {y, W, 1, IR_ELEM_F32, NULL}, {out, W, 1, IR_ELEM_F32, NULL}};
    e.operand[0] = &t[0];
    e.operand[1] = &t[1];
    ir_lower(b, shape, &l);
    ir_run_loop(&l, &e, &t[2]);
    ir_lower_done(&l);
}

/* Nested reduces with counts read from damaged constants could run for years. */
static bool runs_long(const struct ir_body *b)
{
    for (uint32_t i = 0; i < b->count; i++) {
        const struct ir_op *op = &b->ops[i];
        if (op->code == IR_REDUCE && (op->arg[4] != IR_NONE || op->imm > 100))
            return true;
    }
    return false;
}

/* Whatever the verifier lets pass can be interpreted (run under ASan to see more than a crash), and
 * simplifies to the same bits. */
static void what_the_verifier_accepts_is_safe_to_run(void **state)
{
    struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
    struct rng r;
    float *x = mem_array(T * W, sizeof(*x)), *y = mem_array(T * W, sizeof(*y));
    float *out = mem_array(T * W, sizeof(*out)), *again = mem_array(T * W, sizeof(*again));
    uint32_t accepted = 0, refused = 0;
    rng_init(&r, 4711);
    for (int i = 0; i < T * W; i++) {
        x[i] = model_normal(&r);
        y[i] = model_normal(&r);
    }
    for (uint64_t seed = 1; seed <= 6000; seed++) {
        struct ir_shape shape = random_shape(&r);
        struct ir_body b = random_body(seed, shape, 2), simple;
        struct ir_shape operand[2] = {ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, W),
                                      ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, W)};
        struct ir_body_scope scope = {.graph = g,
                                      .section = RDU_SECTION_HEAD,
                                      .operand = operand,
                                      .operands = 2,
                                      .what = "damaged"};
        struct err e = {0};
        assert_int_equal(ir_verify_body(&b, &shape, &scope, &e), ERR_OK);
        for (uint64_t n = 1 + rng_below(&r, 2); n > 0; n--)
            damage(&b, &r);
        bool good = ir_verify_body(&b, &shape, &scope, &e) == ERR_OK;
        accepted += good;
        refused += !good;
        if (good && !runs_long(&b)) {
            run_body(&b, &shape, g, x, y, out);
            ir_body_simplify(&b, &simple, NULL);
            if (ir_verify_body(&simple, &shape, &scope, &e) != ERR_OK)
                fail_msg("seed %llu: simplified: %s", (unsigned long long)seed, e.msg);
            run_body(&simple, &shape, g, x, y, again);
            if (!same_bits(out, again, T * W))
                fail_msg("seed %llu: simplifying changed the bits", (unsigned long long)seed);
            ir_body_done(&simple);
        }
        ir_body_done(&b);
    }
    assert_true(accepted > 300 && refused > 300);
    free(x);
    free(y);
    free(out);
    free(again);
    rdu_graph_close(&g);
}

/* ---- single rewrites ------------------------------------------------------------------------- */

static struct ir_body simplified(struct ir_body *b, struct ir_simplify_counts *counts)
{
    struct ir_body s;
    memset(counts, 0, sizeof(*counts));
    ir_body_simplify(b, &s, counts);
    ir_body_done(b);
    return s;
}

static void identities_are_applied_only_where_exact(void **state)
{
    const struct {
        enum ir_code code;
        float c;
        bool gone;
    } cases[] = {{IR_MUL, 1.0f, true}, {IR_ADD, -0.0f, true},  {IR_ADD, 0.0f, false},
                 {IR_SUB, 0.0f, true}, {IR_SUB, -0.0f, false}, {IR_MUL, 0.0f, false},
                 {IR_DIV, 1.0f, true}, {IR_MUL, -1.0f, false}};
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct ir_body b, s;
        struct ir_simplify_counts counts;
        ir_body_init(&b);
        uint32_t x = ir_load2(&b, 0, IR_TYPE_F32, ir_index(&b, 0), ir_index(&b, 1));
        b.result = ir_op2(&b, cases[i].code, x, ir_f32(&b, cases[i].c));
        s = simplified(&b, &counts);
        assert_int_equal(s.ops[s.result].code == IR_LOAD, cases[i].gone);
        ir_body_done(&s);
    }
}

static void constants_fold_dead_ops_go_and_invariants_move(void **state)
{
    struct ir_body b, s;
    struct ir_simplify_counts counts;
    ir_body_init(&b);
    uint32_t col = ir_index(&b, 1), row = ir_index(&b, 0);
    ir_op1(&b, IR_EXP, ir_load2(&b, 0, IR_TYPE_F32, row, col)); /* unused */
    struct ir_reduce_spec spec = {.kind = IR_REDUCE_SEQ,
                                  .count = 8,
                                  .count_value = IR_NONE,
                                  .init = {ir_f32(&b, 0.0f)},
                                  .carried = 1};
    uint32_t r = ir_reduce_begin(&b, &spec);
    uint32_t root =
        ir_op1(&b, IR_SQRT, ir_load2(&b, 0, IR_TYPE_F32, row, col)); /* does not depend on r */
    uint32_t nine = ir_op2(&b, IR_MUL, ir_f32(&b, 3.0f), ir_f32(&b, 3.0f));
    uint32_t x = ir_load2(&b, 0, IR_TYPE_F32, row, ir_reduce_index(&b, r));
    uint32_t sum = ir_fma(&b, ir_op2(&b, IR_ADD, root, nine), x, ir_reduce_carried(&b, r, 0));
    ir_reduce_end(&b, r, &sum);
    b.result = ir_reduce_result(&b, r, 0);
    s = simplified(&b, &counts);
    assert_true(counts.folded >= 1 && counts.moved >= 2 && counts.removed >= 1);
    uint32_t inside = 0, exps = 0;
    for (uint32_t i = 0; i < s.count; i++) {
        inside += s.ops[i].parent != IR_NONE;
        exps += s.ops[i].code == IR_EXP;
        assert_false(s.ops[i].code == IR_SQRT && s.ops[i].parent != IR_NONE);
    }
    assert_int_equal(inside, 4); /* its index, the load, the carried value, the fma */
    assert_int_equal(exps, 0);
    ir_body_done(&s);
}

static void scaling_by_one_disappears(void **state)
{
    struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_scale(g, rdu_embed(g, tokens, rdu_slot(g, "e", 10, 64)), 1.0f));
    rdu_graph_end(g, rdu_graph_begin(g, RDU_SECTION_LAYER, 64));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
    rdu_graph_end(g, rdu_matmul(g, rdu_take_outs(g, x), rdu_slot(g, "e", 10, 64)));
    struct rdu_graph *s = opt_simplify(g);
    assert_int_equal(s->counts.copies, 1);
    assert_int_equal(s->counts.nodes_after, s->counts.nodes_before - 1);
    rdu_graph_close(&s);
    rdu_graph_close(&g);
}

/* Logits of 3 wanted tokens must not cost the multiplications of all 64. */
static void logits_are_made_for_wanted_tokens_only(void **state)
{
    struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_INT8);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 10, 64)));
    rdu_graph_end(g, rdu_graph_begin(g, RDU_SECTION_LAYER, 64));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
    x = rdu_rms_norm(g, x, rdu_slot(g, "n", 1, 64), 1e-5f, 1);
    rdu_graph_end(g, rdu_take_outs(g, rdu_matmul(g, x, rdu_slot(g, "e", 10, 64))));
    struct rdu_program_options o = {.exec = RDU_EXEC_FUSED, .sockets = 8};
    struct rdu_program *p = NULL;
    struct err e = {0};
    if (rdu_program_open(&g, &o, &p, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    const struct rdu_section_plan *head = &p->section[RDU_SECTION_HEAD];
    assert_int_equal(head->count, 3);
    assert_int_equal(head->launches[0].kernel, RDU_KERNEL_TAKE_OUTS);
    assert_int_equal(head->launches[1].kernel, RDU_KERNEL_NORM);
    assert_int_equal(head->launches[2].kernel, RDU_KERNEL_HEAD);
    assert_true(p->bufs[head->launches[2].in[1]].per_out);
    assert_int_equal(p->graph->counts.hoisted, 5); /* norm, d, q, s, matmul */
    rdu_program_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_keep_the_bits_of_random_graphs),
        cmocka_unit_test(what_the_verifier_accepts_is_safe_to_run),
        cmocka_unit_test(identities_are_applied_only_where_exact),
        cmocka_unit_test(constants_fold_dead_ops_go_and_invariants_move),
        cmocka_unit_test(scaling_by_one_disappears),
        cmocka_unit_test(logits_are_made_for_wanted_tokens_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
