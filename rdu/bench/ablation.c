/* One workload in all the ways it can be run, behind one handle. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/bench/ablation.h"

const char *rdu_ablation_name(enum rdu_ablation_work work)
{
    static const char *const name[RDU_ABLATION_WORKS] = {"elementwise", "decoder_layer", "q1", "q6",
                                                         "sampler"};
    return (unsigned)work < RDU_ABLATION_WORKS ? name[work] : "?";
}

struct bench_hand bench_hand_best(void)
{
    struct bench_hand h;
    bench_hand_base(&h);
#ifdef __x86_64__
    /* Not asked for f16c: clang 14 does not know the name, and every chip with AVX2 has it. */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        bench_hand_avx2(&h);
#endif
    return h;
}

/* ---- tables ---------------------------------------------------------------------------------- */

struct table_work {
    struct bench_table table;
    struct scan_graph *graph[2]; /* unfused, fused */
    struct scan_exec *exec[2];
    uint32_t elem;
    struct emit_object object;
    scan_native_fn *native[SCAN_ELEMS];
    struct bench_hand hand;
    struct buf report;
    float *column;                    /* of the chain by hand */
    double sums[Q1_KEYS * Q1_VALUES]; /* by hand */
    size_t sums_count;                /* 0: the result is a column */
};

static void table_close(void *work)
{
    struct table_work *t = work;
    for (int i = 0; i < 2; i++) {
        scan_exec_close(&t->exec[i]);
        scan_graph_close(&t->graph[i]);
    }
    emit_unload(&t->object);
    bench_table_done(&t->table);
    buf_done(&t->report);
    free(t->column);
    free(t);
}

static void table_run(void *work, enum rdu_ablation_way way)
{
    struct table_work *t = work;
    const struct scan_source *c = t->table.source;
    if (way == RDU_ABLATION_UNFUSED || way == RDU_ABLATION_FUSED)
        scan_run(t->exec[way == RDU_ABLATION_FUSED], 1);
    else if (way == RDU_ABLATION_NATIVE)
        scan_run_native(t->exec[1], 1, t->native);
    else if (t->sums_count == 0)
        t->hand.chain(c, t->table.n, t->column);
    else if (t->sums_count == 1)
        t->sums[0] =
            (way == RDU_ABLATION_HAND ? t->hand.q6_lanes : t->hand.q6_plain)(c, t->table.n);
    else
        (way == RDU_ABLATION_HAND ? t->hand.q1_lanes : t->hand.q1_plain)(c, t->table.n, t->sums);
}

static const void *table_result(void *work, enum rdu_ablation_way way, size_t *ret_count)
{
    struct table_work *t = work;
    bool by_hand = way == RDU_ABLATION_HAND || way == RDU_ABLATION_PLAIN;
    const struct scan_exec *x = t->exec[way != RDU_ABLATION_UNFUSED];
    *ret_count = t->sums_count > 0 ? t->sums_count : t->table.n;
    if (t->sums_count > 0)
        return by_hand ? t->sums : scan_sums(x, t->elem);
    return by_hand ? (const void *)t->column : scan_collected(x, t->elem);
}

static const struct bench_ways table_ways = {
    .run = table_run, .result = table_result, .close = table_close};

void bench_without_native(struct rdu_ablation *a, const struct err *why)
{
    a->has[RDU_ABLATION_NATIVE] = false;
    buf_printf(&a->report, "  no native code: %s\n", why->msg);
}

static void make_native(struct table_work *t, struct rdu_ablation *a)
{
    struct buf text = {0};
    struct err e = {0};
    scan_emit(t->graph[1], t->table.source, &text);
    enum err_code code = bench_compile(&text, &t->object, &e);
    for (uint32_t i = 0; code == ERR_OK && i < t->graph[1]->loops; i++) {
        char name[32];
        snprintf(name, sizeof(name), "sy_scan_%u", i);
        t->native[i] = (scan_native_fn *)(uintptr_t)dlsym(t->object.handle, name);
        if (t->native[i] == NULL)
            code = err_set(&e, ERR_INTERNAL, "%s is not in the compiled unit", name);
    }
    if (code != ERR_OK)
        bench_without_native(a, &e);
    buf_done(&text);
}

static enum err_code table_open(const struct rdu_ablation_spec *spec, struct rdu_ablation *a,
                                struct err *e)
{
    struct table_work *t = mem_alloc(sizeof(*t));
    a->ways = &table_ways;
    a->work = t;
    a->doubles = spec->work != RDU_ABLATION_ELEMENTWISE;
    t->hand = bench_hand_best();
    if (spec->work == RDU_ABLATION_ELEMENTWISE) {
        bench_chain_fill(&t->table, spec->n, spec->columns, spec->seed);
        t->graph[0] = bench_chain_graph(&t->elem);
        t->column = mem_array(BASE_MAX(spec->n, (uint64_t)1), sizeof(*t->column));
        a->has[RDU_ABLATION_PLAIN] = false;
    } else {
        bench_lineitem_fill(&t->table, spec->n, spec->columns, spec->seed);
        bool q6 = spec->work == RDU_ABLATION_Q6;
        t->graph[0] = q6 ? bench_q6_graph(&t->elem) : bench_q1_graph(&t->elem);
        t->sums_count = q6 ? 1 : (size_t)Q1_KEYS * Q1_VALUES;
    }
    enum err_code code = scan_verify(t->graph[0], e);
    if (code != ERR_OK)
        return code;
    t->object.fd = -1;
    t->graph[1] = scan_fuse(t->graph[0], &t->report);
    buf_puts(&a->report, t->report.data ? t->report.data : "");
    for (int i = 0; i < 2; i++)
        t->exec[i] = scan_exec_open(t->graph[i], t->table.source, spec->n);
    buf_printf(&a->report, "  %u loops -> %u; columns between them: %zu -> %zu bytes\n",
               t->graph[0]->loops, t->graph[1]->loops, scan_bytes(t->exec[0]),
               scan_bytes(t->exec[1]));
    make_native(t, a);
    return ERR_OK;
}

/* ---- the handle ------------------------------------------------------------------------------ */

enum err_code rdu_ablation_open(const struct rdu_ablation_spec *spec, struct rdu_ablation **ret,
                                struct err *e)
{
    if (spec->n == 0 || spec->n > (uint64_t)1 << 28)
        return err_set(e, ERR_INVALID, "%llu elements: 1 to 2^28 are possible",
                       (unsigned long long)spec->n);
    struct rdu_ablation *a = mem_alloc(sizeof(*a));
    for (int i = 0; i < RDU_ABLATION_WAYS; i++)
        a->has[i] = true;
    enum err_code code;
    if (spec->work == RDU_ABLATION_SAMPLER)
        code = bench_sampler_open(spec, a, e);
    else if (spec->work == RDU_ABLATION_DECODER_LAYER)
        code = bench_layer_open(spec, a, e);
    else
        code = table_open(spec, a, e);
    if (code != ERR_OK) {
        rdu_ablation_close(&a);
        return code;
    }
    *ret = a;
    return ERR_OK;
}

void rdu_ablation_close(struct rdu_ablation **a)
{
    if (*a == NULL)
        return;
    if ((*a)->work)
        (*a)->ways->close((*a)->work);
    buf_done(&(*a)->report);
    free(*a);
    *a = NULL;
}

bool rdu_ablation_has(const struct rdu_ablation *a, enum rdu_ablation_way way)
{
    return (unsigned)way < RDU_ABLATION_WAYS && a->has[way];
}

void rdu_ablation_run(struct rdu_ablation *a, enum rdu_ablation_way way)
{
    a->ways->run(a->work, way);
}

void rdu_ablation_explain(const struct rdu_ablation *a, struct buf *out)
{
    buf_puts(out, a->report.data ? a->report.data : "");
}

static double value_at(const struct rdu_ablation *a, const void *v, size_t i)
{
    return a->doubles ? ((const double *)v)[i] : (double)((const float *)v)[i];
}

/* The first element in which `way` differs from `want`, or `count`. */
static size_t first_difference(const struct rdu_ablation *a, const void *want, const void *got,
                               size_t count, bool exact)
{
    size_t bytes = a->doubles ? sizeof(double) : sizeof(float);
    for (size_t i = 0; i < count; i++) {
        double w = value_at(a, want, i), g = value_at(a, got, i);
        if (exact
                ? memcmp((const char *)want + i * bytes, (const char *)got + i * bytes, bytes) != 0
                : !(fabs(w - g) <= 1e-5 * fmax(fabs(w), 1.0)))
            return i;
    }
    return count;
}

enum err_code rdu_ablation_check(struct rdu_ablation *a, struct err *e)
{
    static const char *const name[RDU_ABLATION_WAYS] = {"unfused", "fused", "native", "by hand",
                                                        "by plain hand"};
    size_t count = 0, bytes = a->doubles ? sizeof(double) : sizeof(float);
    rdu_ablation_run(a, RDU_ABLATION_UNFUSED);
    const void *from = a->ways->result(a->work, RDU_ABLATION_UNFUSED, &count);
    void *want = mem_array(count, bytes);
    memcpy(want, from, count * bytes);
    enum err_code code = ERR_OK;
    for (int w = RDU_ABLATION_FUSED; w < RDU_ABLATION_WAYS && code == ERR_OK; w++) {
        if (!a->has[w])
            continue;
        rdu_ablation_run(a, (enum rdu_ablation_way)w);
        const void *got = a->ways->result(a->work, (enum rdu_ablation_way)w, &count);
        size_t i = first_difference(a, want, got, count, w != RDU_ABLATION_PLAIN);
        if (i < count)
            code = err_set(e, ERR_INTERNAL, "%s gives %.9g at %zu, unfused %.9g", name[w],
                           value_at(a, got, i), i, value_at(a, want, i));
    }
    free(want);
    return code;
}
