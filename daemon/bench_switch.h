/* What the ways to measure a switch of experts share: in this process (bench_local.c) and against a
 * server (bench_remote.c); who comes next (bench_pattern.c); how it is printed (bench_figures.c).
 * Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_BENCH_SWITCH_H
#define SWITCHYARD_DAEMON_BENCH_SWITCH_H

#include "conf/conf.h"
#include "daemon/cli.h"
#include "memtier/memtier.h"

/* ---- which expert comes next ---- */

enum bench_order { BENCH_ROUND_ROBIN, BENCH_SHUFFLE, BENCH_ZIPF, BENCH_TRACE };
struct bench_pattern {
    enum bench_order order;
    uint32_t experts;
    double *cumulative; /* [experts], Zipf; owned */
    uint32_t *ranks;    /* of the trace or the current shuffle; owned */
    size_t ranks_count, at;
    struct rng rng;
};
/* "rr", "shuffle" (every expert once, in another order each round), "zipf:S" or "trace:FILE". */
enum err_code bench_pattern_init(struct bench_pattern *p, const char *text, uint32_t experts,
                                 uint64_t seed, struct err *e) BASE_NODISCARD;
uint32_t bench_pattern_next(struct bench_pattern *p);
void bench_pattern_done(struct bench_pattern *p);

/* ---- samples ---- */

struct bench_list {
    double *v;
    size_t count, cap;
};
void bench_add(struct bench_list *l, double v);
double bench_quantile(struct bench_list *l, double q); /* sorts; NAN of none */

struct bench_figures {
    /* Of pairs that were measured one after the other; ms and bytes/s. */
    struct bench_list ttft, resident, excess, load,
        ratio; /* ratio: ttft over max(load, resident) */
    struct bench_list rate, device, copy, share, copy_share,
        fio; /* shares: of the device, of memcpy */
    uint64_t bytes, cpu_ns, loads, hits, evictions;
    uint64_t launch_ns_p50, launch_ns_p99; /* of switches: the engine's decision to the first launch */
};
void bench_figures_done(struct bench_figures *f);

struct bench_switch {
    const char *which; /* "switch" or "load" */
    const char *pattern, *from, *store, *url, *admin, *key, *fio, *verify, *loader;
    struct cli_list models;
    uint64_t experts, requests, prompt, tokens, seed, threads, hbm;
    bool json, live; /* live: print each request */
    struct bench_figures figures;
    char loader_text[400];
};
/* One line of text or one JSON object; what was not measured is null. */
void bench_print(struct bench_switch *b);

/* Both fill in b->figures. */
enum err_code bench_run_local(struct bench_switch *b, struct err *e) BASE_NODISCARD;
enum err_code bench_run_remote(struct bench_switch *b, struct err *e) BASE_NODISCARD;

#endif
