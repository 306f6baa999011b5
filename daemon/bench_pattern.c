/* Access patterns: the expert of the next request. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/bench_switch.h"
#include "daemon/simulate_trace.h"

static enum err_code init_zipf(struct bench_pattern *p, const char *text, struct err *e)
{
    char *end;
    double s = strtod(text, &end), sum = 0;
    if (end == text || *end != 0 || !(s >= 0 && s <= 10))
        return err_set(e, ERR_INVALID, "'zipf:%s': the exponent is a number from 0 to 10", text);
    p->order = BENCH_ZIPF;
    p->cumulative = mem_array(p->experts, sizeof(*p->cumulative));
    for (uint32_t i = 0; i < p->experts; i++)
        p->cumulative[i] = sum += pow(i + 1, -s);
    return ERR_OK;
}

static enum err_code init_trace(struct bench_pattern *p, const char *path, struct err *e)
{
    struct sim_trace t = {0};
    enum err_code code = sim_trace_load(path, &t, e);
    p->order = BENCH_TRACE;
    p->ranks = mem_array(t.count + 1, sizeof(*p->ranks));
    for (size_t i = 0; code == ERR_OK && i < t.count; i++)
        p->ranks[p->ranks_count++] = t.rows[i].rank % p->experts;
    sim_trace_done(&t);
    return code;
}

enum err_code bench_pattern_init(struct bench_pattern *p, const char *text, uint32_t experts,
                                 uint64_t seed, struct err *e)
{
    *p = (struct bench_pattern){.experts = experts};
    rng_init(&p->rng, seed);
    if (strncmp(text, "zipf:", 5) == 0)
        return init_zipf(p, text + 5, e);
    if (strncmp(text, "trace:", 6) == 0)
        return init_trace(p, text + 6, e);
    if (strcmp(text, "rr") != 0 && strcmp(text, "shuffle") != 0)
        return err_set(e, ERR_INVALID,
                       "there is no pattern '%s': rr, shuffle, zipf:S and trace:FILE are", text);
    p->order = text[0] == 'r' ? BENCH_ROUND_ROBIN : BENCH_SHUFFLE;
    p->ranks_count = experts;
    p->ranks = mem_array(experts, sizeof(*p->ranks));
    for (uint32_t i = 0; i < experts; i++)
        p->ranks[i] = i;
    return ERR_OK;
}

static void shuffle(struct bench_pattern *p)
{
    for (size_t i = p->ranks_count; i > 1; i--) {
        size_t k = rng_below(&p->rng, i);
        uint32_t was = p->ranks[i - 1];
        p->ranks[i - 1] = p->ranks[k];
        p->ranks[k] = was;
    }
}

uint32_t bench_pattern_next(struct bench_pattern *p)
{
    if (p->order == BENCH_ZIPF) {
        double at = rng_f64(&p->rng) * p->cumulative[p->experts - 1];
        uint32_t i = 0;
        while (i + 1 < p->experts && p->cumulative[i] <= at)
            i++;
        return i;
    }
    if (p->at == 0 && p->order == BENCH_SHUFFLE)
        shuffle(p);
    uint32_t next = p->ranks[p->at];
    p->at = (p->at + 1) % p->ranks_count;
    return next;
}

void bench_pattern_done(struct bench_pattern *p)
{
    free(p->cumulative);
    free(p->ranks);
    *p = (struct bench_pattern){0};
}
