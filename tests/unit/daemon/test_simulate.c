/* The simulator: residency against an independent LRU and an exhaustive optimum, the loop against closed
 * forms, the published rows within their tolerances, and that chip files decide them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/simulate_preset.h"
#include "daemon/simulate_trace.h"

#define MS 1000000ull
#define NS 1e-9

static const char *source_root(void)
{
    const char *root = getenv("SWITCHYARD_SOURCE");
    return root ? root : ".";
}

static struct rdu_chip chip_named(const char *name)
{
    struct rdu_chip c;
    struct err e = {0};
    char path[4096];
    snprintf(path, sizeof(path), "%s/conf/chips/%s.yaml", source_root(), name);
    if (rdu_chip_load(path, &c, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return c;
}

static void near(double got, double want, double bound)
{
    if (!(fabs(got - want) <= bound * fabs(want)))
        fail_msg("%.9g, wanted %.9g", got, want);
}

/* ---- Belady's bound ---- */

static uint64_t lru_loads(const uint32_t *x, size_t n, uint32_t places)
{
    uint32_t cache[64], count = 0;
    uint64_t loads = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t at = 0;
        while (at < count && cache[at] != x[i])
            at++;
        if (at == count) {
            loads++;
            if (count < places)
                count++;
            at = count - 1;
        }
        memmove(cache + 1, cache, at * sizeof(*cache));
        cache[0] = x[i];
    }
    return loads;
}

/* Every choice of what to evict, for tiny cases: the true optimum. `held` is a set of bits. */
static uint64_t best_loads(const uint32_t *x, size_t n, uint32_t held, uint32_t places)
{
    if (n == 0)
        return 0;
    if (held & 1u << x[0])
        return best_loads(x + 1, n - 1, held, places);
    if ((uint32_t)__builtin_popcount(held) < places)
        return 1 + best_loads(x + 1, n - 1, held | 1u << x[0], places);
    uint64_t best = UINT64_MAX;
    for (uint32_t v = 0; v < 8; v++)
        if (held & 1u << v)
            best = BASE_MIN(best, 1 + best_loads(x + 1, n - 1, (held & ~(1u << v)) | 1u << x[0], places));
    return best;
}

static void belady_is_the_optimum_of_tiny_cases(void **state)
{
    uint64_t seed = 11;
    struct rng r;
    rng_init(&r, seed);
    for (int i = 0; i < 300; i++) {
        uint32_t x[11], n = 1 + (uint32_t)rng_below(&r, 11), places = 1 + (uint32_t)rng_below(&r, 4);
        for (uint32_t k = 0; k < n; k++)
            x[k] = (uint32_t)rng_below(&r, 6);
        uint64_t got = sim_belady_loads(x, n, 8, places), want = best_loads(x, n, 0, places);
        if (got != want)
            fail_msg("seed %llu, case %d: %llu loads, the optimum is %llu", (unsigned long long)seed, i,
                     (unsigned long long)got, (unsigned long long)want);
    }
}

static void belady_never_loads_more_than_lru(void **state)
{
    uint64_t seed = 12;
    struct rng r;
    rng_init(&r, seed);
    for (int i = 0; i < 500; i++) {
        uint32_t x[400], n = 1 + (uint32_t)rng_below(&r, 400), experts = 2 + (uint32_t)rng_below(&r, 60);
        uint32_t places = 1 + (uint32_t)rng_below(&r, experts);
        for (uint32_t k = 0; k < n; k++) /* skewed: the smaller of two draws */
            x[k] = (uint32_t)BASE_MIN(rng_below(&r, experts), rng_below(&r, experts));
        uint64_t best = sim_belady_loads(x, n, experts, places), lru = lru_loads(x, n, places);
        if (best > lru)
            fail_msg("seed %llu, case %d: %llu > %llu", (unsigned long long)seed, i, (unsigned long long)best,
                     (unsigned long long)lru);
    }
}

/* ---- the loop ---- */

struct setting {
    struct rdu_chip chip;
    struct rdu_shape shape;
    struct sim_options opt;
};

static void set_up(struct setting *t)
{
    t->chip = chip_named("sn40l");
    t->shape = sim_shape_of_bytes(100 * BASE_MIB, 5);
    t->opt = (struct sim_options){.chip = &t->chip, .shape = &t->shape, .level = RDU_LEVEL_FUSED_HO,
                                  .experts = 20, .expert_bytes = 100 * BASE_MIB,
                                  .hbm_bytes = 500 * BASE_MIB, .policy = "lru", .load_bytes_per_s = 1e9,
                                  .lanes = 8, .prefill_chunk = 256, .max_defer_ns = 500 * MS,
                                  .hold = UINT32_MAX};
}

static struct sim *opened(const struct setting *t)
{
    struct sim *s = NULL;
    struct err e = {0};
    if (sim_open(&t->opt, &s, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return s;
}

static void run(struct sim *s)
{
    struct err e = {0};
    if (sim_run(s, NULL, NULL, &e) != ERR_OK)
        fail_msg("%s", e.msg);
}

static void submit(struct sim *s, uint64_t at_ns, uint32_t expert, uint32_t prompt, uint32_t output)
{
    sim_submit(s, &(struct sim_request){.arrival_ns = at_ns, .expert = expert, .prompt = prompt,
                                        .output = output});
}

/* `n` requests of skewed popularity, `gap_ns` apart on average. */
static void submit_random(struct sim *s, struct rng *r, size_t n, uint32_t experts, uint64_t gap_ns)
{
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        at += rng_below(r, 2 * gap_ns + 1);
        submit(s, at, (uint32_t)BASE_MIN(rng_below(r, experts), rng_below(r, experts)),
               1 + (uint32_t)rng_below(r, 900), 1 + (uint32_t)rng_below(r, 80));
    }
}

static void one_request_takes_its_load_and_its_inference(void **state)
{
    struct setting t;
    set_up(&t);
    t.opt.prefill_chunk = 1u << 30;
    struct sim *s = opened(&t);
    submit(s, 5 * MS, 3, 400, 100);
    run(s);
    size_t n;
    const struct sim_request *r = sim_requests(s, &n);
    double load = 100.0 * BASE_MIB / 1e9;
    double inference = sim_inference_s(&t.chip, &t.shape, t.opt.level, 1, 400, 100);
    assert_int_equal(n, 1);
    assert_false(r->hit);
    near((double)r->stall_ns * NS, load, 1e-6);
    near((double)(r->done_ns - r->arrival_ns) * NS, load + inference, 1e-6);
    struct sim_totals all;
    sim_totals(s, &all);
    assert_int_equal(all.loads, 1);
    assert_int_equal(all.tokens, 100);
    sim_close(&s);
}

static void the_second_request_for_a_resident_expert_does_not_load(void **state)
{
    struct setting t;
    set_up(&t);
    struct sim *s = opened(&t);
    submit(s, 0, 3, 100, 10);
    submit(s, 10, 3, 100, 10);     /* while the first one waits: one load serves both */
    submit(s, 60000 * MS, 3, 100, 10); /* long after */
    run(s);
    size_t n;
    const struct sim_request *r = sim_requests(s, &n);
    struct sim_totals all;
    sim_totals(s, &all);
    assert_int_equal(all.loads, 1);
    assert_true(r[0].stall_ns > 0 && r[1].stall_ns > 0 && r[1].stall_ns < r[0].stall_ns);
    assert_true(r[2].hit && r[2].stall_ns == 0);
    sim_close(&s);
}

/* Two resident experts share the node step by step: together they take what each would take alone. */
static void rounds_among_experts_add_up(void **state)
{
    struct setting t;
    set_up(&t);
    t.opt.prefill_chunk = 1u << 30;
    struct sim *s = opened(&t);
    submit(s, 0, 1, 50, 1);
    submit(s, 0, 2, 50, 1);
    submit(s, 10000 * MS, 1, 300, 400);
    submit(s, 10000 * MS, 2, 300, 400);
    run(s);
    size_t n;
    const struct sim_request *r = sim_requests(s, &n);
    double alone = sim_inference_s(&t.chip, &t.shape, t.opt.level, 1, 300, 400)
                   - t.chip.node_inference_fixed_s;
    double both = (double)(BASE_MAX(r[2].done_ns, r[3].done_ns) - 10000 * MS) * NS;
    near(both, 2 * (alone + t.chip.node_inference_fixed_s), 1e-6);
    double apart = fabs((double)r[2].done_ns - (double)r[3].done_ns) * NS;
    assert_true(apart < 2 * alone / 400); /* they end within a step or two of each other */
    sim_close(&s);
}

/* With one lane and requests far apart the loop is a plain replay. */
static void one_lane_replays_lru_and_belady_exactly(void **state)
{
    uint64_t seed = 13;
    struct rng r;
    rng_init(&r, seed);
    for (int i = 0; i < 20; i++) {
        struct setting t;
        set_up(&t);
        t.opt.lanes = 1;
        uint32_t x[500], places = 1 + (uint32_t)rng_below(&r, 12);
        t.opt.hbm_bytes = places * t.opt.expert_bytes;
        for (size_t k = 0; k < BASE_COUNT(x); k++)
            x[k] = (uint32_t)BASE_MIN(rng_below(&r, 20), rng_below(&r, 20));
        for (int belady = 0; belady < 2; belady++) {
            t.opt.policy = belady ? "belady" : "lru";
            struct sim *s = opened(&t);
            for (size_t k = 0; k < BASE_COUNT(x); k++)
                submit(s, k * 1000 * MS, x[k], 10, 1);
            run(s);
            struct sim_totals all;
            sim_totals(s, &all);
            uint64_t best = sim_belady_loads(x, BASE_COUNT(x), 20, places);
            assert_int_equal(all.belady_loads, best);
            assert_int_equal(all.loads, belady ? best : lru_loads(x, BASE_COUNT(x), places));
            sim_close(&s);
        }
    }
}

static void no_policy_beats_the_bound_and_nothing_is_lost(void **state)
{
    static const char *const policies[] = {"lru", "gdsf", "belady"};
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct rng r;
        rng_init(&r, seed);
        struct setting t;
        set_up(&t);
        t.opt.lanes = 1 + (uint32_t)rng_below(&r, 16);
        t.opt.hbm_bytes = (2 + rng_below(&r, 10)) * t.opt.expert_bytes;
        t.opt.kv_token_bytes = rng_below(&r, 2) * 10000;
        t.opt.blocking_loads = rng_below(&r, 2);
        t.opt.run_while_loading = rng_below(&r, 2);
        t.opt.prefetch = rng_below(&r, 2);
        t.opt.max_defer_ns = (1 + rng_below(&r, 2000)) * MS;
        uint64_t gap = (1 + rng_below(&r, 400)) * MS;
        for (size_t p = 0; p < BASE_COUNT(policies); p++) {
            t.opt.policy = policies[p];
            struct sim *s = opened(&t);
            rng_init(&r, seed * 77);
            submit_random(s, &r, 300, 20, gap);
            run(s);
            struct sim_totals all;
            size_t n;
            const struct sim_request *q = sim_requests(s, &n);
            uint64_t tokens = 0;
            sim_totals(s, &all);
            for (size_t i = 0; i < n; i++) {
                tokens += q[i].output;
                if (!(q[i].arrival_ns <= q[i].admitted_ns && q[i].admitted_ns < q[i].first_ns &&
                      q[i].first_ns <= q[i].done_ns && q[i].stall_ns <= q[i].done_ns - q[i].admitted_ns))
                    fail_msg("seed %llu, %s: request %zu", (unsigned long long)seed, policies[p], i);
            }
            if (all.loads < all.belady_loads || all.requests != 300 || all.tokens != tokens ||
                all.busy_ns + all.idle_ns != sim_now(s))
                fail_msg("seed %llu, %s", (unsigned long long)seed, policies[p]);
            sim_close(&s);
        }
    }
}

static void the_same_input_gives_the_same_result(void **state)
{
    struct sim_request first[300];
    for (int i = 0; i < 2; i++) {
        struct setting t;
        struct rng r;
        set_up(&t);
        t.opt.policy = "gdsf";
        t.opt.prefetch = t.opt.run_while_loading = true;
        rng_init(&r, 5);
        struct sim *s = opened(&t);
        submit_random(s, &r, 300, 20, 50 * MS);
        run(s);
        size_t n;
        const struct sim_request *q = sim_requests(s, &n);
        if (i == 0)
            memcpy(first, q, sizeof(first));
        else
            assert_memory_equal(first, q, sizeof(first));
        sim_close(&s);
    }
}

static void loads_beside_steps_delay_less_than_loads_that_block(void **state)
{
    uint64_t end[3];
    for (int i = 0; i < 3; i++) {
        struct setting t;
        struct rng r;
        set_up(&t);
        t.opt.blocking_loads = i == 0;
        t.opt.run_while_loading = i == 2;
        rng_init(&r, 9);
        struct sim *s = opened(&t);
        submit_random(s, &r, 400, 20, 10 * MS);
        run(s);
        end[i] = sim_now(s);
        sim_close(&s);
    }
    assert_true(end[1] < end[0]);
    assert_true(end[2] <= end[1]);
}

static void what_cannot_fit_is_refused_with_numbers(void **state)
{
    struct setting t;
    struct err e = {0};
    struct sim *s = NULL;
    set_up(&t);
    t.opt.hbm_bytes = 99 * BASE_MIB;
    assert_int_equal(sim_open(&t.opt, &s, &e), ERR_NO_MEMORY);
    assert_non_null(strstr(e.msg, "99.0 MiB"));
    t.opt.hbm_bytes = 150 * BASE_MIB;
    t.opt.kv_token_bytes = BASE_MIB;
    s = opened(&t);
    submit(s, 0, 0, 10, 10);
    submit(s, 0, 1, 60, 10);
    assert_int_equal(sim_run(s, NULL, NULL, &e), ERR_NO_MEMORY);
    assert_non_null(strstr(e.msg, "170.0 MiB"));
    sim_close(&s);
    t.opt.policy = "mru";
    assert_int_equal(sim_open(&t.opt, &s, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "gdsf"));
}

/* ---- the preset ---- */

static void init(struct coe *c)
{
    char *files[COE_CHIPS];
    static const char *const names[] = {"sn40l", "dgx-a100", "dgx-h100"};
    struct err e = {0};
    for (int i = 0; i < COE_CHIPS; i++)
        files[i] = mem_format("%s/conf/chips/%s.yaml", source_root(), names[i]);
    if (coe_init(c, (const char *const *)files, COE_CHIPS, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    for (int i = 0; i < COE_CHIPS; i++)
        free(files[i]);
    assert_string_equal(c->chip[COE_NODE].name, "sn40l");
    assert_string_equal(c->chip[COE_H100].name, "dgx-h100");
}

static struct coe_rows rows_of(const struct coe *c)
{
    struct coe_rows r;
    struct err e = {0};
    if (coe_rows(c, &r, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return r;
}

static const struct coe_row *row_named(const struct coe_rows *r, const char *name)
{
    static const struct coe_row none;
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(r->rows[i].name, name) == 0)
            return &r->rows[i];
    fail_msg("there is no row %s", name);
    return &none;
}

static void every_published_figure_is_reproduced(void **state)
{
    struct coe c;
    init(&c);
    struct coe_rows r = rows_of(&c);
    size_t table_v = 0, calibrated = 0;
    for (size_t i = 0; i < r.count; i++) {
        const struct coe_row *row = &r.rows[i];
        if (!coe_row_holds(row))
            fail_msg("%s: published %g, modelled %g", row->name, row->published, row->modelled);
        if (strncmp(row->name, "table_v.", 8) != 0)
            continue;
        table_v++;
        calibrated += row->calibrated;
        assert_true(fabs(row->modelled - row->published) <= 0.12);
        assert_true(fabs(row->left_out) <= 0.12);
        /* No overall cell is used to calibrate. */
        assert_false(row->calibrated && strstr(row->name, "overall"));
    }
    assert_int_equal(table_v, 12);
    assert_int_equal(calibrated, 3);
    near(row_named(&r, "switch.a100")->modelled, 31.25, 1e-9);
    near(row_named(&r, "switch.h100")->modelled, 15.625, 1e-9);
    assert_true(row_named(&r, "knee.experts")->exact == 47);
    assert_true(row_named(&r, "oom.experts")->exact == 149);
    assert_true(row_named(&r, "experts_per_node")->modelled == 850);
    assert_true(row_named(&r, "dgx_nodes")->modelled == 19);
    coe_rows_done(&r);
}

static void the_calibrated_inputs_are_what_their_cells_ask_for(void **state)
{
    struct coe c;
    bool use[COE_CELLS];
    double z[COE_INPUTS];
    init(&c);
    for (int i = 0; i < COE_CELLS; i++)
        use[i] = coe_cells[i].calibrates;
    coe_fit(&c, use, z);
    for (int i = 0; i < COE_INPUTS; i++)
        near(*rdu_chip_value(&c.chip[coe_input_chip[i]], coe_input_field[i]), z[i], 1e-3);
    /* From elsewhere it comes to the same. */
    *rdu_chip_value(&c.chip[COE_NODE], RDU_CHIP_node_inference_fixed_s) = 0;
    *rdu_chip_value(&c.chip[COE_A100], RDU_CHIP_efficiency_hbm_fused) = 0.5;
    double again[COE_INPUTS];
    coe_fit(&c, use, again);
    for (int i = 0; i < COE_INPUTS; i++)
        near(again[i], z[i], 1e-3);
}

static void the_loop_agrees_with_the_closed_form(void **state)
{
    struct coe c;
    init(&c);
    struct coe_rows r = rows_of(&c);
    for (int i = 0; i < COE_CELLS; i++)
        near(row_named(&r, coe_cells[i].name)->modelled, coe_cell_ratio(&c, &coe_cells[i]), 0.01);
    coe_rows_done(&r);
}

static void each_calibrated_input_moves_its_rows(void **state)
{
    static const struct {
        int chip;
        enum rdu_chip_field field;
        double times;
        const char *moves, *stays;
    } cases[] = {
        {COE_NODE, RDU_CHIP_node_d2h_bytes_per_s, 2, "switch.a100", "dgx_nodes"},
        {COE_A100, RDU_CHIP_node_d2h_bytes_per_s, 2, "table_v.overall.bs8.20.a100", "switch.h100"},
        {COE_A100, RDU_CHIP_socket_hbm_bytes, 1.5, "knee.experts", "oom.experts"},
        {COE_A100, RDU_CHIP_socket_hbm_bytes, 1.5, "dgx_nodes", "switch.a100"},
        {COE_A100, RDU_CHIP_socket_ddr_bytes, 1.5, "oom.experts", "knee.experts"},
        {COE_NODE, RDU_CHIP_node_ddr_usable_share, 0.9, "experts_per_node", "switch.a100"},
        {COE_NODE, RDU_CHIP_node_inference_fixed_s, 2, "table_v.expert.bs1.20.h100", "switch.a100"},
        {COE_A100, RDU_CHIP_efficiency_hbm_fused, 1.2, "table_v.expert.bs1.200.a100",
         "table_v.expert.bs1.200.h100"},
        {COE_H100, RDU_CHIP_efficiency_hbm_fused, 1.2, "table_v.expert.bs1.200.h100",
         "table_v.expert.bs1.200.a100"},
        {COE_NODE, RDU_CHIP_launch_so_s, 2, "fusion.mistral-7b.ho", "table_v.expert.bs1.20.a100"},
        {COE_NODE, RDU_CHIP_efficiency_compute, 0.7, "fusion.flashfftconv.prefill",
         "launches.llama2-7b.prefill"},
        {COE_NODE, RDU_CHIP_efficiency_hbm_unfused, 0.8, "fusion.bloom-176b.prefill", "switch.a100"},
        {COE_NODE, RDU_CHIP_socket_sram_bytes, 0.1, "launches.llama2-7b.prefill", "switch.a100"},
    };
    struct coe c;
    init(&c);
    c.measured = 4000;
    struct coe_rows before = rows_of(&c);
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct coe own = c;
        *rdu_chip_value(&own.chip[cases[i].chip], cases[i].field) *= cases[i].times;
        struct coe_rows after = rows_of(&own);
        if (row_named(&before, cases[i].moves)->modelled == row_named(&after, cases[i].moves)->modelled)
            fail_msg("%s does not follow %s", cases[i].moves, rdu_chip_key(cases[i].field));
        if (row_named(&before, cases[i].stays)->modelled != row_named(&after, cases[i].stays)->modelled)
            fail_msg("%s follows %s", cases[i].stays, rdu_chip_key(cases[i].field));
        coe_rows_done(&after);
    }
    coe_rows_done(&before);
}

static double measured_s(const struct coe *c, struct coe_point p, double *ret_miss)
{
    struct coe_result m;
    struct err e = {0};
    p.chip = p.chip ? p.chip : &c->chip[COE_NODE];
    p.batches = 400;
    p.router_tokens = 20;
    p.prompt = 200;
    p.output = 20;
    p.hbm_scale = p.hbm_scale > 0 ? p.hbm_scale : 1;
    if (coe_measure(c, &p, &m, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    if (ret_miss)
        *ret_miss = m.miss_ratio;
    return m.out_of_memory ? (double)INFINITY : m.batch_s;
}

static void each_mode_is_no_slower_than_the_one_before(void **state)
{
    struct coe c;
    init(&c);
    double last = (double)INFINITY;
    for (int mode = COE_PAPER; mode < COE_MODES; mode++) {
        double s = measured_s(&c, (struct coe_point){.mode = mode, .experts = 150, .batch = 8, .zipf = 0.8}, NULL);
        assert_true(s <= last);
        last = s;
    }
}

static void latency_jumps_at_the_knee_and_ends_at_the_oom(void **state)
{
    struct coe c;
    init(&c);
    struct coe_point p = {.chip = &c.chip[COE_A100], .batch = 8};
    double miss, at46, at47, at60;
    p.experts = 46;
    at46 = measured_s(&c, p, &miss);
    assert_true(miss == 0);
    p.experts = 47;
    at47 = measured_s(&c, p, &miss);
    assert_true(miss > 0 && at47 > at46);
    p.experts = 60;
    at60 = measured_s(&c, p, &miss);
    assert_true(at60 > 1.5 * at46);
    p.experts = 148;
    assert_true(isfinite(measured_s(&c, p, NULL)));
    p.experts = 149;
    assert_true(isinf(measured_s(&c, p, NULL)));
    near(miss, 1 - 46.0 / 60, 0.05); /* uniform choice under LRU */
}

static void sweeps_are_drawn_without_a_gap_that_is_no_end(void **state)
{
    struct coe c;
    struct err e = {0};
    struct buf csv = {0}, svg = {0};
    init(&c);
    struct coe_sweep *s = mem_array(COE_SWEEPS, sizeof(*s));
    if (coe_sweeps(&c, s, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    for (int i = 0; i < COE_SWEEPS; i++)
        for (size_t k = 0; k < coe_series_count; k++)
            for (size_t x = 0; x < s[i].count; x++)
                /* Only the DGXs run out, and only of room for experts. */
                assert_true(isfinite(s[i].batch_ms[k][x]) ||
                            (i == 0 && s[i].x[x] > 148 && coe_series[k].chip != COE_NODE));
    coe_sweeps_csv(s, &csv);
    coe_sweeps_svg(s, &svg);
    assert_non_null(strstr(csv.data, "experts,850,node,1,paper,"));
    assert_non_null(strstr(csv.data, "experts,150,dgx-a100,1,paper,out of memory"));
    assert_non_null(strstr(csv.data, "skew,1,dgx-a100,8,paper,"));
    assert_non_null(strstr(svg.data, "<svg "));
    assert_non_null(strstr(svg.data, "Node time"));
    assert_null(strstr(svg.data, "nan"));
    assert_null(strstr(svg.data, "inf"));
    buf_done(&csv);
    buf_done(&svg);
    free(s);
}

/* ---- traces ---- */

static void traces_are_read_by_their_header(void **state)
{
    static const char text[] = "session_id,expert_rank,output_tokens,prompt_tokens,arrival_ms\r\n"
                               "7,3,10,20,0\r\n8,1,11,21,1.5\r\n\r\n";
    struct sim_trace t;
    struct err e = {0};
    assert_int_equal(sim_trace_parse(text, strlen(text), "t.csv", &t, &e), ERR_OK);
    assert_int_equal(t.count, 2);
    assert_int_equal(t.experts, 3);
    assert_int_equal(t.rows[1].arrival_ns, 1500000);
    assert_int_equal(t.rows[1].prompt, 21);
    assert_int_equal(t.rows[1].output, 11);
    assert_int_equal(t.rows[1].rank, 0);
    sim_trace_done(&t);
}

static void bad_traces_are_refused_with_the_line(void **state)
{
#define HEAD "arrival_ms,prompt_tokens,output_tokens,expert_rank\n"
    static const char *const cases[][2] = {
        {"", "arrival_ms"},
        {"a,b\n1,2\n", "no column 'arrival_ms'"},
        {"arrival_ms,prompt_tokens,output_tokens\n0,1,1\n", "no column 'expert_rank'"},
        {HEAD, "no rows"},
        {HEAD "0,1,1,1\n0,1,x,1\n", "line 3: output_tokens"},
        {HEAD "0,1,1,0\n", "line 2: expert_rank"},
        {HEAD "0,-1,1,1\n", "line 2: prompt_tokens"},
        {HEAD "0,nan,1,1\n", "line 2: prompt_tokens"},
        {HEAD "0,1,1\n", "line 2"},
        {HEAD "5,1,1,1\n4,1,1,1\n", "line 3: arrives before"},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct sim_trace t;
        struct err e = {0};
        assert_int_equal(sim_trace_parse(cases[i][0], strlen(cases[i][0]), "t.csv", &t, &e), ERR_INVALID);
        if (strstr(e.msg, cases[i][1]) == NULL || strstr(e.msg, "t.csv") == NULL)
            fail_msg("case %zu: '%s' does not say '%s'", i, e.msg, cases[i][1]);
    }
}

static void a_shape_of_bytes_has_those_bytes(void **state)
{
    for (double mib = 1; mib < 200000; mib *= 3) {
        struct rdu_shape s = sim_shape_of_bytes((uint64_t)(mib * BASE_MIB), 5);
        near(rdu_shape_bytes(&s), mib * BASE_MIB, 1e-6);
        if (mib > 50)
            near(rdu_shape_weights(&s), mib * BASE_MIB * 8 / 5, 0.2);
    }
}

/* The traces that come with the router's data: gdsf is never more than 1 % worse than lru, and better on
 * the sum, at pools of a tenth and a quarter. */
static void gdsf_with_look_ahead_is_no_worse_than_lru_on_the_traces(void **state)
{
    static const char *const names[] = {"azure2023_conv", "mooncake_conversation", "mooncake_synthetic",
                                        "servegen_m-large"};
    const char *shared = getenv("SWITCHYARD_SHARED");
    double sum[3] = {0};
    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        char path[4096];
        struct sim_trace t;
        struct err e = {0};
        snprintf(path, sizeof(path), "%s/router/traces/%s.csv", shared ? shared : "../shared", names[i]);
        if (access(path, R_OK) != 0) {
            print_message("no traces at %s: skipped\n", path);
            skip();
        }
        assert_int_equal(sim_trace_load(path, &t, &e), ERR_OK);
        for (int pool = 0; pool < 2; pool++) {
            struct setting v;
            struct sim_trace_options how = {.context = 4096, .repeat = 1, .speed = 1};
            struct sim_trace_result r[3];
            set_up(&v);
            v.opt.lanes = 32;
            v.opt.prefetch = v.opt.run_while_loading = true;
            v.opt.hbm_bytes = (uint64_t)(t.experts * (pool ? 0.25 : 0.1)) * v.opt.expert_bytes;
            for (int p = 0; p < 3; p++) {
                v.opt.policy = sim_policies[p];
                if (sim_trace_run(&t, &how, &v.opt, &r[p], &e) != ERR_OK)
                    fail_msg("%s", e.msg);
                sum[p] += r[p].miss_ratio;
                assert_true(r[p].belady_ratio <= r[p].miss_ratio);
            }
            if (r[1].miss_ratio > 1.01 * r[0].miss_ratio || r[2].miss_ratio > r[1].miss_ratio)
                fail_msg("%s, pool %d: lru %.4f gdsf %.4f belady %.4f", names[i], pool, r[0].miss_ratio,
                         r[1].miss_ratio, r[2].miss_ratio);
        }
        sim_trace_done(&t);
    }
    assert_true(sum[1] < sum[0] && sum[2] < sum[1]);
}

/* ---- the command ---- */

/* Runs it with stdout in a file, whose text is returned. */
static char *command(int *ret_exit, const char *const *words)
{
    char path[] = "/tmp/switchyard-simulate-XXXXXX";
    char *argv[24];
    int argc = 0, fd = mkstemp(path), kept = dup(STDOUT_FILENO), quiet = dup(STDERR_FILENO);
    int null = open("/dev/null", O_WRONLY);
    struct buf text = {0};
    struct err e;
    for (; words[argc]; argc++)
        argv[argc] = (char *)words[argc];
    fflush(stdout);
    dup2(fd, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    *ret_exit = cmd_simulate(argc, argv);
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    dup2(quiet, STDERR_FILENO);
    close(fd);
    close(null);
    close(kept);
    close(quiet);
    assert_int_equal(file_read(path, 1 << 20, &text, &e), ERR_OK);
    unlink(path);
    return text.data ? text.data : mem_strdup("");
}

static void json_has_one_row_per_figure_and_then_the_inputs(void **state)
{
    const char *const words[] = {"simulate", "--preset", "samba-coe", "--json", NULL};
    int exit;
    char *text = command(&exit, words), *line = text;
    size_t rows = 0, inputs = 0;
    assert_int_equal(exit, CLI_DONE);
    for (char *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        json_t *j = json_loads(line, 0, NULL);
        assert_non_null(j);
        assert_int_equal(inputs, 0); /* they come last */
        if (json_object_get(j, "name")) {
            rows++;
            assert_true(json_is_number(json_object_get(j, "modelled")));
            assert_true(json_is_boolean(json_object_get(j, "calibrated")));
            assert_non_null(json_object_get(j, "published"));
            assert_string_equal(json_string_value(json_object_get(j, "clock")), "node");
        } else {
            inputs = json_array_size(json_object_get(j, "calibrated_inputs"));
            json_t *one = json_array_get(json_object_get(j, "calibrated_inputs"), 0);
            assert_true(json_is_number(json_object_get(one, "value")));
            assert_true(json_is_string(json_object_get(one, "name")));
            assert_true(json_is_string(json_object_get(one, "source")));
        }
        json_decref(j);
    }
    assert_true(rows >= 50);
    assert_in_range(inputs, 1, 5);
    free(text);
}

static void the_text_says_whose_time_it_is(void **state)
{
    const char *const words[] = {"simulate", "--preset", "samba-coe", NULL};
    int exit;
    char *text = command(&exit, words);
    assert_int_equal(exit, CLI_DONE);
    assert_non_null(strstr(text, "node time"));
    assert_non_null(strstr(text, "Calibrated inputs:"));
    assert_non_null(strstr(text, "Taken as given"));
    free(text);
}

static void wrong_usage_and_refusals_have_their_exit_codes(void **state)
{
    static const struct {
        const char *words[8];
        int exit;
    } cases[] = {
        {{"simulate", NULL}, CLI_WRONG},
        {{"simulate", "--preset", "samba", NULL}, CLI_WRONG},
        {{"simulate", "--preset", "samba-coe", "--trace", "x", NULL}, CLI_WRONG},
        {{"simulate", "--preset", "samba-coe", "--mode", "fast", NULL}, CLI_WRONG},
        {{"simulate", "--trace", "x.csv", "--policy", "mru", NULL}, CLI_WRONG},
        {{"simulate", "--trace", "no-such-file.csv", NULL}, CLI_REFUSED},
        {{"simulate", "--preset", "samba-coe", "--chip", "./no-such.yaml", NULL}, CLI_REFUSED},
        {{"simulate", "--preset", "samba-coe", "--chip", "sn50", NULL}, CLI_REFUSED},
        {{"simulate", "--preset", "samba-coe", "--policy", "lru", NULL}, CLI_WRONG},
        {{"simulate", "--trace", "x.csv", "--prompt", "5", NULL}, CLI_WRONG},
        {{"simulate", "--trace", "x.csv", "--expert-bytes", "0", NULL}, CLI_WRONG},
        {{"simulate", "--help", NULL}, CLI_DONE},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        int exit;
        free(command(&exit, cases[i].words));
        if (exit != cases[i].exit)
            fail_msg("case %zu: exit %d", i, exit);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(belady_is_the_optimum_of_tiny_cases),
        cmocka_unit_test(belady_never_loads_more_than_lru),
        cmocka_unit_test(one_request_takes_its_load_and_its_inference),
        cmocka_unit_test(the_second_request_for_a_resident_expert_does_not_load),
        cmocka_unit_test(rounds_among_experts_add_up),
        cmocka_unit_test(one_lane_replays_lru_and_belady_exactly),
        cmocka_unit_test(no_policy_beats_the_bound_and_nothing_is_lost),
        cmocka_unit_test(the_same_input_gives_the_same_result),
        cmocka_unit_test(loads_beside_steps_delay_less_than_loads_that_block),
        cmocka_unit_test(what_cannot_fit_is_refused_with_numbers),
        cmocka_unit_test(every_published_figure_is_reproduced),
        cmocka_unit_test(the_calibrated_inputs_are_what_their_cells_ask_for),
        cmocka_unit_test(the_loop_agrees_with_the_closed_form),
        cmocka_unit_test(each_calibrated_input_moves_its_rows),
        cmocka_unit_test(each_mode_is_no_slower_than_the_one_before),
        cmocka_unit_test(latency_jumps_at_the_knee_and_ends_at_the_oom),
        cmocka_unit_test(sweeps_are_drawn_without_a_gap_that_is_no_end),
        cmocka_unit_test(traces_are_read_by_their_header),
        cmocka_unit_test(bad_traces_are_refused_with_the_line),
        cmocka_unit_test(a_shape_of_bytes_has_those_bytes),
        cmocka_unit_test(gdsf_with_look_ahead_is_no_worse_than_lru_on_the_traces),
        cmocka_unit_test(json_has_one_row_per_figure_and_then_the_inputs),
        cmocka_unit_test(the_text_says_whose_time_it_is),
        cmocka_unit_test(wrong_usage_and_refusals_have_their_exit_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
