/* switchyard bench fusion: what fusing and the layout of data are worth, each apart and together,
 * over the blocked interpreter and beside C written by hand. All ways of a workload take turns, so
 * that a machine that changes its speed changes it for all; ratios are medians of rounds. */
#include <stdlib.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/json_out.h"
#include "rdu/rdu.h"

#define ROUNDS_MAX 1001
#define SAMPLE_NS 300000 /* shorter runs are repeated to fill it */

struct fusion {
    uint64_t rows, rounds, seed;
    const char *only;
    bool json, explain, sweep_only, no_sweep;
    /* < 0: not measured */
    double least; /* smallest fused over unfused */
    double chain, q6_over_hand, sampler;
};

/* Medians over the rounds; < 0: there is no such way. */
struct measured {
    double ms[RDU_ABLATION_WAYS];
    double over_unfused[RDU_ABLATION_WAYS], over_fused[RDU_ABLATION_WAYS],
        over_hand[RDU_ABLATION_WAYS];
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, size_t n)
{
    qsort(v, n, sizeof(*v), by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static double sample_ms(struct rdu_ablation *a, enum rdu_ablation_way way, uint64_t times)
{
    uint64_t start = clock_ns();
    for (uint64_t i = 0; i < times; i++)
        rdu_ablation_run(a, way);
    return (double)(clock_ns() - start) * 1e-6 / (double)times;
}

/* The faster of the two written by hand, in one round. */
static double hand_ms(const struct rdu_ablation *a, double (*ms)[ROUNDS_MAX], size_t r)
{
    double best = -1;
    for (int w = RDU_ABLATION_HAND; w <= RDU_ABLATION_PLAIN; w++) {
        if (rdu_ablation_has(a, (enum rdu_ablation_way)w) && (best < 0 || ms[w][r] < best))
            best = ms[w][r];
    }
    return best;
}

/* How often b goes into a. */
static double median_ratio(const double *a, const double *b, size_t n)
{
    static double ratio[ROUNDS_MAX];
    for (size_t r = 0; r < n; r++)
        ratio[r] = a[r] / b[r];
    return median(ratio, n);
}

static void measure(struct rdu_ablation *a, size_t rounds, struct measured *ret)
{
    static double ms[RDU_ABLATION_WAYS][ROUNDS_MAX], hand[ROUNDS_MAX];
    uint64_t times[RDU_ABLATION_WAYS];
    for (int w = 0; w < RDU_ABLATION_WAYS; w++) {
        if (!rdu_ablation_has(a, (enum rdu_ablation_way)w))
            continue;
        double once = sample_ms(a, (enum rdu_ablation_way)w, 1) * 1e6;
        times[w] = once > 0 ? 1 + (uint64_t)(SAMPLE_NS / once) : 1;
    }
    for (size_t r = 0; r < rounds; r++) {
        for (int i = 0; i < RDU_ABLATION_WAYS; i++) {
            /* Every second round the other way about: nobody always follows the same one. */
            int w = r % 2 ? RDU_ABLATION_WAYS - 1 - i : i;
            if (rdu_ablation_has(a, (enum rdu_ablation_way)w))
                ms[w][r] = sample_ms(a, (enum rdu_ablation_way)w, times[w]);
        }
    }
    for (size_t r = 0; r < rounds; r++)
        hand[r] = hand_ms(a, ms, r);
    for (int w = RDU_ABLATION_WAYS; w-- > 0;) { /* fused and unfused last: they are compared with */
        ret->ms[w] = ret->over_unfused[w] = ret->over_fused[w] = ret->over_hand[w] = -1;
        if (!rdu_ablation_has(a, (enum rdu_ablation_way)w))
            continue;
        ret->over_unfused[w] = median_ratio(ms[RDU_ABLATION_UNFUSED], ms[w], rounds);
        ret->over_fused[w] = median_ratio(ms[RDU_ABLATION_FUSED], ms[w], rounds);
        ret->over_hand[w] = median_ratio(hand, ms[w], rounds);
        ret->ms[w] = median(ms[w], rounds); /* sorts: nothing reads them as rounds any more */
    }
}

/* ---- what others published ------------------------------------------------------------------- */

struct published {
    enum rdu_ablation_work work;
    bool columns, fused;
    double value; /* speed over rows without fusing, or over C by hand */
    const char *what;
};
static const struct published published[] = {
    {RDU_ABLATION_Q1, false, true, 0.93,
     "over rows unfused; fusion alone in Delite, Q1, 1 core (EPFL thesis)"},
    {RDU_ABLATION_Q1, true, false, 0.59,
     "over rows unfused; columns alone in Delite, Q1, 1 core (EPFL thesis)"},
    {RDU_ABLATION_Q1, true, true, 3.05,
     "over rows unfused; both in Delite, Q1, 1 core (EPFL thesis); OptiQL: 5.5"},
    {RDU_ABLATION_Q6, false, true, 1.05,
     "over rows unfused; fusion alone in Delite, Q6, 1 core (EPFL thesis)"},
    {RDU_ABLATION_Q6, true, false, 0.89,
     "over rows unfused; columns alone in Delite, Q6, 1 core (EPFL thesis)"},
    {RDU_ABLATION_Q6, true, true, 3.22,
     "over rows unfused; both in Delite, Q6, 1 core (EPFL thesis); Flare over C by hand: 0.99"},
};

static const struct published *find_published(enum rdu_ablation_work work, bool columns, bool fused)
{
    for (size_t i = 0; i < BASE_COUNT(published); i++) {
        const struct published *p = &published[i];
        if (p->work == work && p->columns == columns && p->fused == fused)
            return p;
    }
    return NULL;
}

/* ---- rows ------------------------------------------------------------------------------------ */

struct row {
    enum rdu_ablation_work work;
    bool columns, sweep, native;
    const char *fusion; /* "off", "on"; "hand", "plain": C */
    uint64_t n;
    uint32_t tokens;
    double ms, over_unfused, over_fused, over_hand, over_none;
};

static void put_ratio(struct buf *b, const char *key, double v)
{
    if (v >= 0)
        buf_printf(b, ",\"%s\":%.4f", key, v);
    else
        buf_printf(b, ",\"%s\":null", key);
}

static void print_json(const struct row *r, const struct published *p)
{
    struct buf b = {0};
    const char *name = rdu_ablation_name(r->work);
    buf_printf(&b, "{\"workload\":\"%s\",\"layout\":\"%s\",\"fusion\":\"%s\",\"ms\":%.5f",
               r->native ? "native" : name, r->columns ? "columns" : "rows", r->fusion, r->ms);
    if (r->native)
        buf_printf(&b, ",\"of\":\"%s\"", name);
    put_ratio(&b, "fused_over_unfused", r->over_unfused);
    put_ratio(&b, "over_blocked_fused", r->over_fused);
    put_ratio(&b, "over_hand_c", r->over_hand);
    put_ratio(&b, "over_rows_unfused", r->over_none);
    buf_printf(&b, ",\"n\":%llu", (unsigned long long)r->n);
    if (r->work == RDU_ABLATION_DECODER_LAYER)
        buf_printf(&b, ",\"tokens\":%u", r->tokens);
    buf_printf(&b, ",\"sweep\":%s", r->sweep ? "true" : "false");
    if (p && !r->sweep) {
        buf_printf(&b, ",\"published\":{\"value\":%.2f,\"what\":", p->value);
        json_put_str(&b, p->what);
        buf_puts(&b, "}");
    }
    buf_puts(&b, "}");
    puts(b.data);
    buf_done(&b);
}

static void print_number(double v, const char *unit)
{
    if (v >= 0)
        printf("  %7.2f %s", v, unit);
    else
        printf("  %7s %s", "-", unit);
}

static void print_row(const struct fusion *f, const struct row *r)
{
    bool fused = strcmp(r->fusion, "on") == 0;
    bool graph = fused || strcmp(r->fusion, "off") == 0;
    const struct published *p = graph ? find_published(r->work, r->columns, fused) : NULL;
    if (f->json) {
        print_json(r, p);
    } else {
        printf("%-13s %-7s fusion %-5s n %-9llu", rdu_ablation_name(r->work),
               r->columns ? "columns" : "rows", r->native ? "native" : r->fusion,
               (unsigned long long)r->n);
        if (r->work == RDU_ABLATION_DECODER_LAYER)
            printf(" x %-3u", r->tokens);
        printf(" %10.4f ms", r->ms);
        print_number(r->over_unfused, "x unfused");
        print_number(r->over_fused, "x fused");
        print_number(r->over_hand, "x C by hand");
        print_number(r->over_none, "x rows unfused");
        if (p && !r->sweep)
            printf("  (published: %.2f %s)", p->value, p->what);
        printf("\n");
    }
    fflush(stdout);
}

/* ---- running --------------------------------------------------------------------------------- */

/* What the goals are about. Generated code stands for the graph where there is a compiler. */
static void keep(struct fusion *f, const struct rdu_ablation_spec *spec, bool sweep,
                 const struct measured *m)
{
    double fused = m->over_unfused[RDU_ABLATION_FUSED];
    int best = m->ms[RDU_ABLATION_NATIVE] > 0 ? RDU_ABLATION_NATIVE : RDU_ABLATION_FUSED;
    if (f->least < 0 || fused < f->least)
        f->least = fused;
    if (sweep || !spec->columns)
        return;
    if (spec->work == RDU_ABLATION_ELEMENTWISE)
        f->chain = fused;
    if (spec->work == RDU_ABLATION_Q6)
        f->q6_over_hand = m->over_hand[best];
    if (spec->work == RDU_ABLATION_SAMPLER)
        f->sampler = m->over_unfused[best];
}

/* `none_ms`: rows without fusing, measured before; < 0 if this is it, or there is none. */
static enum err_code run_case(struct fusion *f, const struct rdu_ablation_spec *spec, bool sweep,
                              double *none_ms, struct err *e)
{
    struct rdu_ablation *a = NULL;
    enum err_code code = rdu_ablation_open(spec, &a, e);
    if (code == ERR_OK)
        code = rdu_ablation_check(a, e);
    if (code != ERR_OK) {
        rdu_ablation_close(&a);
        return err_wrap(e, "%s of %llu", rdu_ablation_name(spec->work),
                        (unsigned long long)spec->n);
    }
    struct measured m;
    measure(a, f->rounds, &m);
    if (f->explain && !f->json) {
        struct buf b = {0};
        rdu_ablation_explain(a, &b);
        fputs(b.data ? b.data : "", stdout);
        buf_done(&b);
    }
    if (*none_ms < 0)
        *none_ms = m.ms[RDU_ABLATION_UNFUSED];
    static const char *const name[RDU_ABLATION_WAYS] = {"off", "on", "on", "hand", "plain"};
    for (int w = 0; w < RDU_ABLATION_WAYS; w++) {
        if (m.ms[w] < 0)
            continue;
        struct row r = {.work = spec->work,
                        .columns = spec->columns,
                        .sweep = sweep,
                        .fusion = name[w],
                        .n = spec->n,
                        .tokens = spec->tokens,
                        .ms = m.ms[w],
                        .native = w == RDU_ABLATION_NATIVE,
                        .over_unfused = m.over_unfused[w],
                        .over_fused = m.over_fused[w],
                        .over_hand = m.over_hand[w],
                        .over_none = *none_ms / m.ms[w]};
        print_row(f, &r);
    }
    keep(f, spec, sweep, &m);
    rdu_ablation_close(&a);
    return ERR_OK;
}

static bool wanted(const struct fusion *f, enum rdu_ablation_work work)
{
    return f->only == NULL || strcmp(f->only, rdu_ablation_name(work)) == 0;
}

/* The 2x2, or for what has one layout only its half of it. */
static enum err_code run_ablation(struct fusion *f, enum rdu_ablation_work work, struct err *e)
{
    static const uint64_t layer_width = 576, vocab = 49152;
    double none_ms = -1;
    enum err_code code = ERR_OK;
    for (int columns = work == RDU_ABLATION_SAMPLER; columns < 2 && code == ERR_OK; columns++) {
        struct rdu_ablation_spec spec = {
            .work = work, .columns = columns, .n = f->rows, .tokens = 1, .seed = f->seed};
        if (work == RDU_ABLATION_DECODER_LAYER)
            spec.n = layer_width;
        if (work == RDU_ABLATION_SAMPLER)
            spec.n = vocab;
        code = run_case(f, &spec, false, &none_ms, e);
    }
    return code;
}

static enum err_code run_sweep(struct fusion *f, enum rdu_ablation_work work, struct err *e)
{
    static const uint64_t rows[] = {64, 1000, 4096, 65536, 1000000};
    static const uint64_t widths[] = {64, 256, 1024, 2048}, vocabs[] = {1000, 32000, 128256};
    enum err_code code = ERR_OK;
    bool layer = work == RDU_ABLATION_DECODER_LAYER, sampler = work == RDU_ABLATION_SAMPLER;
    const uint64_t *sizes = layer ? widths : sampler ? vocabs : rows;
    size_t count = layer ? BASE_COUNT(widths) : sampler ? BASE_COUNT(vocabs) : BASE_COUNT(rows);
    for (size_t i = 0; i < count && code == ERR_OK; i++) {
        for (uint32_t tokens = 1; tokens <= (layer ? 16u : 1u) && code == ERR_OK; tokens *= 16) {
            struct rdu_ablation_spec spec = {
                .work = work, .columns = true, .n = sizes[i], .tokens = tokens, .seed = f->seed};
            double none_ms = -1;
            code = run_case(f, &spec, true, &none_ms, e);
        }
    }
    return code;
}

static void print_goal(const struct fusion *f, const char *goal, double least, double measured)
{
    if (measured < 0)
        return;
    if (f->json)
        printf("{\"goal\":\"%s\",\"at_least\":%.2f,\"measured\":%.4f,\"holds\":%s}\n", goal, least,
               measured, measured >= least ? "true" : "false");
    else
        printf("goal: %s >= %.2f: %.3f, %s\n", goal, least, measured,
               measured >= least ? "holds" : "does not hold");
}

static void print_goals(const struct fusion *f)
{
    print_goal(f, "elementwise over columns, fused over unfused", 3.0, f->chain);
    print_goal(f, "fused over unfused anywhere", 0.95, f->least);
    print_goal(f, "q6 over columns, generated over the faster C by hand", 0.95, f->q6_over_hand);
    print_goal(f, "sampler, compiled over one operation at a time", 2.0, f->sampler);
}

static int run(struct fusion *f)
{
    struct err e = {0};
    enum err_code code = ERR_OK;
    f->least = f->chain = f->q6_over_hand = f->sampler = -1;
    for (int w = 0; w < RDU_ABLATION_WORKS && code == ERR_OK; w++) {
        if (!wanted(f, (enum rdu_ablation_work)w))
            continue;
        if (!f->sweep_only)
            code = run_ablation(f, (enum rdu_ablation_work)w, &e);
        if (code == ERR_OK && !f->no_sweep)
            code = run_sweep(f, (enum rdu_ablation_work)w, &e);
    }
    if (code != ERR_OK)
        return cli_refuse("bench fusion", &e);
    print_goals(f);
    return CLI_DONE;
}

static int check_only(const struct fusion *f)
{
    const char *names[RDU_ABLATION_WORKS];
    for (int w = 0; w < RDU_ABLATION_WORKS; w++) {
        names[w] = rdu_ablation_name((enum rdu_ablation_work)w);
        if (f->only == NULL || strcmp(f->only, names[w]) == 0)
            return CLI_RUN;
    }
    const char *near = cli_suggest(f->only, names, BASE_COUNT(names));
    return cli_wrong(
        "bench fusion", "'%s' is no workload%s%s%s", f->only, near ? ": did you mean '" : "",
        near ? near : ": elementwise, decoder_layer, q1, q6 or sampler", near ? "'?" : "");
}

int cmd_bench_fusion(int argc, char **argv)
{
    struct fusion f = {.rows = 6000000, .rounds = 21, .seed = 1};
    const struct cli_option options[] = {
        {"workload", 'w', CLI_TEXT, &f.only, "NAME",
         "elementwise, decoder_layer, q1, q6 or sampler (default: all)", 0, 0},
        {"rows", 0, CLI_UINT, &f.rows, "N", "rows of the tables (default 6000000)", 1, 1 << 27},
        {"reps", 'r', CLI_UINT, &f.rounds, "N",
         "alternating rounds; medians are printed (default 21)", 1, ROUNDS_MAX},
        {"seed", 0, CLI_UINT, &f.seed, "N", "of the generated data (default 1)", 0, 0},
        {"no-sweep", 0, CLI_FLAG, &f.no_sweep, NULL, "the 2x2 tables only"},
        {"sweep", 0, CLI_FLAG, &f.sweep_only, NULL, "other sizes only"},
        {"explain", 0, CLI_FLAG, &f.explain, NULL, "what was fused, and what the gate said"},
        {"json", 0, CLI_FLAG, &f.json, NULL, "one JSON object per line"},
        {0}};
    const struct cli_spec spec = {
        "bench fusion",
        "",
        "Layout (rows, columns) by fusion (off, on) for an elementwise chain, a decoder layer, "
        "TPC-H's\n"
        "Q1 and Q6 and a sampler chain, on one thread. 'off' is the blocked interpreter, one "
        "launch per\n"
        "operator; 'native' is the fused graph as emitted C (if there is a cc); 'hand' is C "
        "written for vectors and 'plain' C as one writes it first, over the "
        "same\n"
        "data; all give the same bits (plain: the same to five digits), which is checked before "
        "timing.\n"
        "Ratios above 1 mean faster. Beside them what Delite and Flare published.",
        "  switchyard bench fusion\n"
        "  switchyard bench fusion --workload q6 --json\n",
        options,
        0,
        0};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, NULL, &args);
    if (exit == CLI_RUN)
        exit = check_only(&f);
    return exit == CLI_RUN ? run(&f) : exit;
}
