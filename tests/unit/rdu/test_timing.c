/* Node time: chip files and what is wrong with them, the cost formulas against values computed by hand,
 * shapes against published parameter counts, cuts and launches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "rdu/timing/timing.h"

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

/* Within a relative bound. */
static void near(double got, double want, double bound)
{
    if (!(fabs(got - want) <= bound * fabs(want)))
        fail_msg("%.12g, wanted %.12g", got, want);
}

/* ---- chip files ---- */

static const char *built_in(const char *name)
{
    for (const struct timing_chip_text *t = timing_chip_texts; t->name; t++)
        if (strcmp(t->name, name) == 0)
            return t->text;
    fail_msg("%s is not built in", name);
    return "";
}

static void every_shipped_chip_is_read_and_built_in(void **state)
{
    static const char *const names[] = {"sn40l", "dgx-a100", "dgx-h100", "host"};
    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        struct rdu_chip file = chip_named(names[i]), built;
        struct err e;
        const char *text = built_in(names[i]);
        assert_int_equal(rdu_chip_parse(text, strlen(text), "x", &built, &e), ERR_OK);
        assert_string_equal(file.name, names[i]);
        for (int f = 0; f < RDU_CHIP_FIELDS_COUNT; f++) {
            assert_true(*rdu_chip_value(&file, f) == *rdu_chip_value(&built, f));
            if (file.note[f].line == 0)
                continue;
            assert_int_not_equal(file.note[f].source, RDU_SOURCE_ABSENT);
            assert_true(strlen(file.note[f].from) > 0);
        }
    }
}

static void values_and_notes_are_those_of_the_file(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    assert_true(c.node_sockets == 8);
    assert_true(c.socket_hbm_bytes == 64.0 * BASE_GIB);
    assert_true(c.socket_peak_bf16_flop_per_s == 638e12);
    assert_true(c.node_d2h_bytes_per_s == 1e12);
    assert_int_equal(c.note[RDU_CHIP_efficiency_compute].source, RDU_SOURCE_GUESS);
    assert_true(c.note[RDU_CHIP_efficiency_compute].least == 0.4);
    assert_true(c.note[RDU_CHIP_efficiency_compute].most == 0.9);
    assert_string_equal(rdu_chip_key(RDU_CHIP_launch_so_s), "launch.so_s");
    assert_string_equal(rdu_source_name(c.note[RDU_CHIP_socket_hbm_bytes].source), "published");
}

static char *replaced(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (at == NULL) {
        fail_msg("'%s' is not in the text", from);
        return mem_strdup("");
    }
    return mem_format("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

static unsigned line_of(const char *text, const char *what)
{
    unsigned line = 1;
    for (const char *at = strstr(text, what); text < at; text++)
        line += *text == '\n';
    return line;
}

static void nonsense_is_refused_with_key_and_line(void **state)
{
    static const struct {
        const char *from, *to, *key, *says;
    } cases[] = {
        {"sockets: {value: 8,", "sockets: {value: eight,", "node.sockets", "not 'eight'"},
        {"sockets: {value: 8,", "sockets: {value: 0,", "node.sockets", "1 to 16"},
        {"sockets: {value: 8,", "sockets: {value: 17,", "node.sockets", "1 to 16"},
        {"sockets: {value: 8,", "sockets: {value: 7.5,", "node.sockets", "whole"},
        {"sockets: {value: 8,", "sockets: {value: \"8\",", "node.sockets", "whole"},
        {"d2h_bytes_per_s: {value: 1.0e+12", "d2h_bytes_per_s: {value: -1.0e+12", "node.d2h_bytes_per_s", "rate"},
        {"d2h_bytes_per_s: {value: 1.0e+12", "d2h_bytes_per_s: {value: 0", "node.d2h_bytes_per_s", "rate"},
        {"d2h_bytes_per_s: {value: 1.0e+12", "d2h_bytes_per_s: {value: .inf", "node.d2h_bytes_per_s", "rate"},
        {"d2h_bytes_per_s: {value: 1.0e+12", "d2h_bytes_per_s: {value: nan", "node.d2h_bytes_per_s", "rate"},
        {"d2h_bytes_per_s: {value: 1.0e+12", "d2h_bytes_per_s: {value: 1TB", "node.d2h_bytes_per_s", "rate"},
        {"compute: {value: 0.6", "compute: {value: 1.2", "efficiency.compute", "share"},
        {"compute: {value: 0.6", "compute: {value: 0", "efficiency.compute", "share"},
        {"fill_s: {value: 2.0e-6", "fill_s: {value: -1", "launch.fill_s", "seconds"},
        {"fill_s: {value: 2.0e-6", "fill_s: {value: 60", "launch.fill_s", "seconds"},
        {"sram_bytes: {value: 545259520", "sram_bytes: {value: 520.5", "socket.sram_bytes", "bytes"},
        {"sockets: {value: 8, source: published", "sockets: {value: 8, source: rumour", "node.sockets.source", "guess"},
        {"sockets: {value: 8, source: published,", "sockets: {value: 8,", "node.sockets", "no source"},
        {"sockets: {value: 8,", "sockets: {", "node.sockets", "no value"},
        {"from: \"paper VI, SN40L Node\",", "", "node.sockets", "no from"},
        {"range: [1, 16]", "range: [16, 1]", "node.sockets.range", "lower one first"},
        {"range: [1, 16]", "range: [1]", "node.sockets.range", "two numbers"},
        {"range: [1, 16]", "rnge: [1, 16]", "node.sockets", "'rnge'"},
        {"  sockets: {", "  sokets: {", "node", "node.sokets"},
        {"launch:\n", "lunch:\n", "lunch", "unknown key"},
        {"  fill_s:", "  so_s:", "launch.so_s", "twice"},
        {"node:\n", "node: 3\nn:\n", "node", "keys"},
        {"ho_s: {value: 15.0e-6", "ho_s: {value: 1.0", "launch.ho_s", "not be more than launch.so_s"},
        {"sram_bytes: {value: 545259520", "sram_bytes: {value: 99999999999", "socket.sram_bytes", "less than"},
        {"name: sn40l", "name: [a, b]", "name", "text"},
    };
    const char *good = built_in("sn40l");
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        char *bad = replaced(good, cases[i].from, cases[i].to), at[32];
        struct rdu_chip c;
        struct err e = {0};
        assert_int_equal(rdu_chip_parse(bad, strlen(bad), "bad.yaml", &c, &e), ERR_INVALID);
        snprintf(at, sizeof(at), "line %u", line_of(good, cases[i].from));
        if (strstr(e.msg, at) == NULL && strcmp(cases[i].to, "node: 3\nn:\n") != 0 &&
            strcmp(cases[i].from, "launch:\n") != 0)
            fail_msg("case %zu: '%s' does not say %s", i, e.msg, at);
        if (strstr(e.msg, cases[i].says) == NULL || strcmp(e.param, cases[i].key) != 0)
            fail_msg("case %zu: '%s' (%s) does not say '%s' of %s", i, e.msg, e.param, cases[i].says,
                     cases[i].key);
        free(bad);
    }
}

static void what_is_missing_is_named(void **state)
{
    const char *good = built_in("sn40l");
    char *bad = replaced(good, "  ho_s: {", "  # ho_s: {");
    struct rdu_chip c;
    struct err e = {0};
    assert_int_equal(rdu_chip_parse(bad, strlen(bad), "bad.yaml", &c, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "launch.ho_s is missing"));
    free(bad);
    bad = replaced(good, "name: sn40l\n", "");
    assert_int_equal(rdu_chip_parse(bad, strlen(bad), "bad.yaml", &c, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "no name"));
    free(bad);
}

static void what_is_no_chip_file_is_refused(void **state)
{
    static const char *const texts[] = {"", "just text", "[1, 2]", "a: {b", "\xff\xfe\x00", "name: x\n",
                                        "{}", "? [a]\n: b\n", "&a [*a]"};
    struct rdu_chip c;
    struct err e;
    for (size_t i = 0; i < BASE_COUNT(texts); i++) {
        e = (struct err){0};
        assert_int_not_equal(rdu_chip_parse(texts[i], strlen(texts[i]), "x.yaml", &c, &e), ERR_OK);
        assert_non_null(strstr(e.msg, "x.yaml"));
    }
    assert_int_not_equal(rdu_chip_load("./no/such.yaml", &c, &e), ERR_OK);
    assert_non_null(strstr(e.msg, "no/such.yaml"));
}

static void names_are_looked_up(void **state)
{
    struct rdu_chip c;
    struct err e = {0};
    unsetenv("SWITCHYARD_CHIPS");
    assert_int_equal(rdu_chip_load("dgx-a100", &c, &e), ERR_OK);
    assert_string_equal(c.name, "dgx-a100");
    assert_int_equal(rdu_chip_load("dgx-a10", &c, &e), ERR_NOT_FOUND);
    assert_non_null(strstr(e.msg, "sn40l, dgx-a100, dgx-h100, host"));
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s/conf/chips", source_root());
    setenv("SWITCHYARD_CHIPS", folder, 1);
    assert_int_equal(rdu_chip_load("host", &c, &e), ERR_OK);
    assert_non_null(strstr(c.origin, "conf/chips/host.yaml"));
    unsetenv("SWITCHYARD_CHIPS");
}

/* ---- formulas ---- */

static void a_kernel_takes_as_long_as_its_slowest_resource(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    const struct {
        struct rdu_work w;
        bool fused;
        enum rdu_cost cost;
        double s;
    } cases[] = {
        /* 1 ms of compute at 638 TFLOP/s x 0.6 against 0.5 ms of HBM at 1.8 TB/s x 0.85 */
        {{.flops = 382.8e9, .hbm_bytes = 0.765e9}, true, RDU_COST_COMPUTE, 1e-3},
        {{.flops = 382.8e9, .hbm_bytes = 3.06e9}, true, RDU_COST_HBM, 2e-3},
        {{.hbm_bytes = 0.9e9}, false, RDU_COST_HBM, 1e-3}, /* unfused: x 0.5 */
        {{.ddr_bytes = 0.2e9, .hbm_bytes = 1e6}, true, RDU_COST_DDR, 1e-3},
        {{.p2p_bytes = 0.275e9}, true, RDU_COST_P2P, 1e-3},
        {{.sram_bytes = 240e9}, true, RDU_COST_SRAM, 1e-3},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct rdu_clock t = {0};
        rdu_time_kernel(&c, &cases[i].w, cases[i].fused, &t);
        near(t.s[cases[i].cost], cases[i].s, 1e-12);
        near(rdu_clock_seconds(&t), cases[i].s + 2e-6, 1e-12); /* and the fill */
        assert_int_equal(t.launches, 0);
    }
    struct rdu_clock t = {0};
    rdu_time_kernel(&c, &(struct rdu_work){.hops = 3}, true, &t);
    near(rdu_clock_seconds(&t), 3e-6 + 2e-6, 1e-12);
}

static void launches_cost_what_their_level_says(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    struct rdu_clock so = {0}, ho = {0};
    rdu_time_launch(&c, RDU_LEVEL_FUSED_SO, &so);
    rdu_time_launch(&c, RDU_LEVEL_LOOPED, &ho);
    near(so.s[RDU_COST_LAUNCH], c.launch_so_s, 1e-12);
    near(ho.s[RDU_COST_LAUNCH], c.launch_ho_s, 1e-12);
    rdu_clock_add(&so, &ho, 3);
    assert_int_equal(so.launches, 4);
    near(rdu_clock_seconds(&so), c.launch_so_s + 3 * c.launch_ho_s, 1e-12);
    near(rdu_time_pipeline_s(2e-6, 10, (double[]){1e-6, 4e-6, 3e-6}, 3), 42e-6, 1e-12);
}

static void copies_take_bytes_over_rate(void **state)
{
    struct rdu_chip node = chip_named("sn40l"), a100 = chip_named("dgx-a100");
    double bytes = 2.0 * 6738415616;
    near(rdu_time_switch_s(&node, bytes), 13.4768e-3, 1e-5);
    near(rdu_time_switch_s(&a100, bytes) / rdu_time_switch_s(&node, bytes), 31.25, 1e-9);
    node.node_switch_fixed_s = 1e-3;
    near(rdu_time_switch_s(&node, bytes), 14.4768e-3, 1e-5);
    near(rdu_time_host_copy_s(&node, 32e9), 1, 1e-12);
}

static void collectives_send_what_the_algorithm_sends(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    struct rdu_work w = rdu_time_collective(&c, RDU_ALL_REDUCE, 8192); /* little: all to all */
    assert_int_equal(w.hops, 1);
    near(w.p2p_bytes, 7 * 8192, 1e-12);
    w = rdu_time_collective(&c, RDU_ALL_REDUCE, 64e6); /* much: scatter and gather, 2 (n-1)/n */
    assert_int_equal(w.hops, 2);
    near(w.p2p_bytes, 1.75 * 64e6, 1e-12);
    w = rdu_time_collective(&c, RDU_ALL_GATHER, 64e6);
    near(w.p2p_bytes, 0.875 * 64e6, 1e-12);
    c.node_sockets = 1;
    w = rdu_time_collective(&c, RDU_ALL_REDUCE, 64e6);
    assert_true(w.p2p_bytes == 0 && w.hops == 0);
}

/* ---- workloads ---- */

static void shapes_have_the_published_numbers_of_weights(void **state)
{
    assert_true(rdu_shape_weights(rdu_shape_find("llama2-7b")) == 6738415616.0);
    assert_true(rdu_shape_weights(rdu_shape_find("llama2-70b")) == 68976648192.0);
    assert_true(rdu_shape_weights(rdu_shape_find("mistral-7b")) == 7241732096.0);
    near(rdu_shape_weights(rdu_shape_find("falcon-40b")), 41.8e9, 0.005);
    near(rdu_shape_weights(rdu_shape_find("bloom-176b")), 176.25e9, 0.005);
    near(rdu_shape_weights(rdu_shape_find("llava-1.5-7b")), 7.06e9, 0.005);
    near(rdu_shape_kv_bytes(rdu_shape_find("llama2-7b")), 0.5 * BASE_MIB, 1e-12);
    assert_null(rdu_shape_find("llama2-8b"));
}

static void a_layer_does_the_operations_of_its_matrices(void **state)
{
    const struct rdu_shape *s = rdu_shape_find("llama2-7b");
    struct rdu_pass p = rdu_pass_prefill(1, 512);
    struct timing_op ops[TIMING_OPS_MAX];
    size_t n = timing_layer_ops(s, &p, ops), matmuls = 0, reduces = 0;
    double flops = 0, weights = 0;
    for (size_t i = 0; i < n; i++) {
        flops += ops[i].matmul ? ops[i].fused_flops : 0;
        matmuls += ops[i].matmul;
        weights += ops[i].weight_bytes;
        reduces += ops[i].reduce_bytes > 0;
    }
    /* 2 P S + 2 S (S + 1) d: two products over the lower triangle */
    double matrices = 4.0 * 4096 * 4096 + 3.0 * 4096 * 11008;
    near(flops, 2 * matrices * 512 + 2.0 * 512 * 513 * 4096, 1e-12);
    near(weights, 2 * (matrices + 2 * 4096), 1e-12);
    assert_int_equal(n, 13);
    assert_int_equal(matmuls, 6);
    assert_int_equal(reduces, 2);
    n = timing_layer_ops(rdu_shape_find("falcon-40b"), &p, ops);
    reduces = 0;
    for (size_t i = 0; i < n; i++)
        reduces += ops[i].reduce_bytes > 0;
    assert_int_equal(reduces, 1); /* attention and MLP are summed at once */
}

static void decoding_reads_every_weight_once(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    const struct rdu_shape *s = rdu_shape_find("llama2-7b");
    struct rdu_pass p = rdu_pass_decode(1, 1000);
    struct rdu_clock t;
    rdu_time_pass(&c, s, &p, RDU_LEVEL_LOOPED, &t);
    double weights = rdu_shape_bytes(s) - 2.0 * 32000 * 4096; /* one row of the embedding */
    near(t.hbm_bytes, weights + 1001 * rdu_shape_kv_bytes(s), 1e-3);
    near(t.s[RDU_COST_HBM], t.hbm_bytes / (8 * 1.8e12 * 0.85), 1e-3);
    assert_int_equal(t.launches, 1);
    near(t.s[RDU_COST_LAUNCH], c.launch_ho_s, 1e-12);
    rdu_time_pass(&c, s, &p, RDU_LEVEL_FUSED_HO, &t);
    assert_int_equal(t.launches, 34); /* embedding, 32 layers, head */
    rdu_time_pass(&c, s, &p, RDU_LEVEL_UNFUSED, &t);
    assert_int_equal(t.launches, 32 * 13 + 3);
}

static void fusion_is_never_slower_nor_are_more_sockets_in_prefill(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    static const char *const names[] = {"llama2-7b", "llama2-70b", "mistral-7b", "falcon-40b",
                                        "bloom-176b", "sparsegpt-13b", "llava-1.5-7b"};
    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        const struct rdu_shape *s = rdu_shape_find(names[i]);
        struct rdu_pass pass[] = {rdu_pass_decode(1, 2048), rdu_pass_prefill(8, 2048)};
        for (size_t k = 0; k < BASE_COUNT(pass); k++) {
            double last = (double)INFINITY;
            for (int sockets = 1; sockets <= 16; sockets *= 2) {
                struct rdu_clock t[4];
                c.node_sockets = sockets;
                for (int level = 0; level < 4; level++)
                    rdu_time_pass(&c, s, &pass[k], level, &t[level]);
                for (int level = 1; level < 4; level++)
                    assert_true(rdu_clock_seconds(&t[level]) < rdu_clock_seconds(&t[level - 1]));
                /* The sparse one has so few operations that sums over sockets decide. */
                if (k == 1 && strcmp(names[i], "sparsegpt-13b") != 0)
                    assert_true(rdu_clock_seconds(&t[3]) < last);
                last = rdu_clock_seconds(&t[3]);
            }
        }
    }
}

static void a_layer_that_does_not_fit_sram_is_cut(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    struct timing_op ops[TIMING_OPS_MAX];
    size_t cut[TIMING_OPS_MAX];
    struct rdu_pass prefill = rdu_pass_prefill(4, 2048), decode = rdu_pass_decode(1, 2048);
    const struct rdu_shape *bloom = rdu_shape_find("bloom-176b"), *llama = rdu_shape_find("llama2-7b");
    size_t n = timing_layer_ops(llama, &prefill, ops);
    assert_int_equal(timing_cut(&c, &prefill, ops, n, cut), 1);
    n = timing_layer_ops(bloom, &prefill, ops); /* 617 MB of weights a socket, 520 MiB of SRAM */
    assert_int_equal(timing_cut(&c, &prefill, ops, n, cut), 2);
    assert_int_equal(cut[0], 0);
    assert_true(cut[1] > 0 && cut[1] < n);
    n = timing_layer_ops(bloom, &decode, ops); /* weights stream through */
    assert_int_equal(timing_cut(&c, &decode, ops, n, cut), 1);
}

static void the_plan_says_what_the_pass_says(void **state)
{
    static const char *const names[] = {"llama2-7b", "mistral-7b", "falcon-40b", "bloom-176b", "sparsegpt-13b"};
    struct rdu_chip c = chip_named("sn40l");
    struct rng r;
    uint64_t seed = 7;
    rng_init(&r, seed);
    for (int i = 0; i < 2000; i++) {
        const struct rdu_shape *s = rdu_shape_find(names[rng_below(&r, BASE_COUNT(names))]);
        enum rdu_level level = RDU_LEVEL_FUSED_SO + (int)rng_below(&r, 3);
        struct rdu_pass p = rdu_pass_prefill((double)rng_below(&r, 4), 1 + (double)rng_below(&r, 3000));
        struct rdu_pass d = rdu_pass_decode((double)rng_below(&r, 40), 1 + (double)rng_below(&r, 8000));
        struct rdu_pass_plan plan;
        struct rdu_clock a, b;
        rdu_pass_add(&p, &d);
        c.node_sockets = 1 + (double)rng_below(&r, 16);
        rdu_pass_plan_init(&plan, &c, s, level);
        rdu_time_pass(&c, s, &p, level, &a);
        rdu_pass_plan_time(&plan, &p, &b);
        double x = rdu_clock_seconds(&a), y = rdu_clock_seconds(&b);
        if (!(fabs(x - y) <= 1e-9 * x + 1e-15) || a.launches != b.launches)
            fail_msg("seed %llu, step %d: %g and %g", (unsigned long long)seed, i, x, y);
    }
}

static void training_costs_about_three_forward_passes(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    struct rdu_pass p = rdu_pass_prefill(16, 4096);
    struct rdu_clock forward, train;
    p.outs = p.tokens; /* all logits, as in training */
    rdu_time_pass(&c, rdu_shape_find("llama2-7b"), &p, RDU_LEVEL_FUSED_HO, &forward);
    p.train = true;
    rdu_time_pass(&c, rdu_shape_find("llama2-7b"), &p, RDU_LEVEL_FUSED_HO, &train);
    near(train.flops, 3 * forward.flops, 0.01);
    assert_int_equal(train.launches, forward.launches + 32);
}

static void a_monarch_convolution_is_one_kernel_when_fused(void **state)
{
    struct rdu_chip c = chip_named("sn40l");
    const uint32_t factor[3] = {128, 128, 64};
    struct rdu_clock un, fused;
    rdu_time_monarch(&c, factor, 64, RDU_LEVEL_UNFUSED, &un);
    rdu_time_monarch(&c, factor, 64, RDU_LEVEL_FUSED_SO, &fused);
    assert_int_equal(un.launches, 17);
    assert_int_equal(fused.launches, 1);
    /* 8 real operations per complex one, six small matrices; twiddles and filter on top */
    double points = 64.0 * (1 << 20);
    near(fused.flops, points * (2 * 8.0 * (128 + 128 + 64) + 5 * 6), 1e-12);
    near(un.flops, fused.flops, 1e-12);
    /* real in, real out, the filter's transform */
    near(fused.hbm_bytes, points * (2 + 2 + 4), 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shipped_chip_is_read_and_built_in),
        cmocka_unit_test(values_and_notes_are_those_of_the_file),
        cmocka_unit_test(nonsense_is_refused_with_key_and_line),
        cmocka_unit_test(what_is_missing_is_named),
        cmocka_unit_test(what_is_no_chip_file_is_refused),
        cmocka_unit_test(names_are_looked_up),
        cmocka_unit_test(a_kernel_takes_as_long_as_its_slowest_resource),
        cmocka_unit_test(launches_cost_what_their_level_says),
        cmocka_unit_test(copies_take_bytes_over_rate),
        cmocka_unit_test(collectives_send_what_the_algorithm_sends),
        cmocka_unit_test(shapes_have_the_published_numbers_of_weights),
        cmocka_unit_test(a_layer_does_the_operations_of_its_matrices),
        cmocka_unit_test(decoding_reads_every_weight_once),
        cmocka_unit_test(fusion_is_never_slower_nor_are_more_sockets_in_prefill),
        cmocka_unit_test(a_layer_that_does_not_fit_sram_is_cut),
        cmocka_unit_test(the_plan_says_what_the_pass_says),
        cmocka_unit_test(training_costs_about_three_forward_passes),
        cmocka_unit_test(a_monarch_convolution_is_one_kernel_when_fused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
