/* The simulator: one event loop on node time over the daemon's own scheduler (sched.h) and memtier's own
 * policies, with a described chip as its cost model. No weights, no threads, no clock of this machine:
 * the same input gives the same output everywhere. Presets and traces both run in it. Private to daemon/.
 *
 * What it does as the engine does: requests wait for a lane, lanes of one expert share steps, the
 * scheduler names the expert of the next step, a step that lacks weights is opened and waits while others
 * run, at most SIM_OPEN_MAX of them; KV comes out of the same pool. An expert is one segment here. */
#ifndef SWITCHYARD_DAEMON_SIMULATE_H
#define SWITCHYARD_DAEMON_SIMULATE_H

#include "memtier/memtier.h"
#include "rdu/rdu.h"

enum { SIM_OPEN_MAX = 4, SIM_LANES_MAX = 256 };

/* ==== memory (simulate_memory.c) ============================================================== */

enum sim_place { SIM_ABSENT, SIM_LOADING, SIM_RESIDENT };

struct sim_expert {
    enum sim_place place;
    bool held;           /* never evicted */
    uint32_t queued;     /* requests that will need it and are not done */
    uint32_t resident_at; /* its index in sim_memory.resident */
    uint64_t used_seq, used_ns, resident_ns;
    double uses;
    uint64_t next_use;   /* belady: number of its next request, UINT64_MAX = none */
    uint64_t served_ns, waiting_ns;  /* the scheduler's */
    uint64_t load_idle_ns, credit_ns; /* the node's idle time when its load began; what the load left */
};
struct sim_memory {
    struct sim_expert *experts; /* [count] */
    uint32_t count;
    uint64_t expert_bytes, capacity, used, kv_used;
    const struct policy *policy; /* NULL = belady */
    double load_s;               /* of one expert */
    uint64_t seq, now_ns;
    uint32_t *resident, resident_count;
    uint32_t queue[SIM_OPEN_MAX], queue_count; /* loads, in order; the first one runs */
    uint64_t load_end_ns;                      /* of the first */
    uint64_t loads, evictions;
};
/* Bytes that may be had by evicting; loads under way and held experts are not. */
uint64_t sim_memory_room(const struct sim_memory *m);
/* Start to load it: evicts what must leave. False = no room now. */
bool sim_memory_load(struct sim_memory *m, uint32_t expert);
/* Take `bytes` for KV; false = no room now. */
bool sim_memory_take_kv(struct sim_memory *m, uint64_t bytes);
/* A request begins to use it. Requests are counted and not steps: with a half-life of some hundred
 * reservations a count of steps forgets within a few requests, and gdsf then is no better than lru. */
void sim_memory_use(struct sim_memory *m, uint32_t expert);
/* The first load is done: resident. Returns which. */
uint32_t sim_memory_arrive(struct sim_memory *m);

/* Fewest loads that any policy needs to serve `experts` in this order with room for `places` of them
 * (Belady 1966): what everything else is compared with. */
uint64_t sim_belady_loads(const uint32_t *experts, size_t n, uint32_t experts_count, uint32_t places);

/* ==== the loop (simulate.c) =================================================================== */

struct sim_options {
    const struct rdu_chip *chip;
    const struct rdu_shape *shape; /* of every expert */
    enum rdu_level level;
    uint32_t experts;
    uint64_t expert_bytes, hbm_bytes;
    uint64_t kv_token_bytes;  /* 0 = hbm_bytes are for weights alone */
    const char *policy;       /* lru, gdsf, belady */
    double load_bytes_per_s;  /* 0 = the chip's */
    uint32_t lanes, prefill_chunk;
    uint64_t max_defer_ns;
    bool blocking_loads;      /* the node waits while anything loads */
    bool run_while_loading;   /* a step begins when the first layer is in */
    bool prefetch;            /* load at the routing decision, into free space */
    uint32_t hold;            /* this expert is resident from the start and stays; UINT32_MAX = none */
};

struct sim_request {
    uint64_t arrival_ns;
    uint32_t expert, prompt, output; /* tokens; output >= 1 */
    uint32_t tag;                    /* the caller's */
    /* Filled in: */
    uint64_t admitted_ns, first_ns, done_ns; /* first: its first token */
    uint64_t stall_ns;                       /* on a lane, waiting for weights */
    bool hit;                                /* resident when it got its lane */
};

struct sim;
enum err_code sim_open(const struct sim_options *opt, struct sim **ret, struct err *e) BASE_NODISCARD;
void sim_close(struct sim **s);
/* Arrivals must not go back in time and not lie before sim_now. */
void sim_submit(struct sim *s, const struct sim_request *r);
/* Runs until nothing is left. `done` is called as each request ends, in order, and may submit more;
 * NULL = nobody wants to know. ERR_NO_MEMORY: a request that can never fit. */
enum err_code sim_run(struct sim *s, void (*done)(void *ctx, struct sim *s, const struct sim_request *r),
                      void *ctx, struct err *e) BASE_NODISCARD;
uint64_t sim_now(const struct sim *s);
const struct sim_request *sim_requests(const struct sim *s, size_t *ret_count); /* in order of arrival */
struct sim_totals {
    uint64_t requests, loads, evictions, steps, tokens;
    uint64_t load_bytes, busy_ns, idle_ns;
    uint64_t belady_loads; /* the bound for the order in which requests were served */
};
void sim_totals(const struct sim *s, struct sim_totals *ret);

/* Node time of `tokens` output tokens after a prompt, `seqs` sequences at once, weights resident: what
 * the loop adds up step by step, in closed form. Includes the chip's fixed time per inference. */
double sim_inference_s(const struct rdu_chip *chip, const struct rdu_shape *shape, enum rdu_level level,
                       double seqs, double prompt, double tokens);

#endif
