/* Which base runs next. A pure function of a view and a time: the daemon, tests with a fake clock and the
 * simulator call the same code. Private to daemon/.
 *
 * Bases whose weights are resident take turns step by step: switching between them costs an argument table.
 * A base that must load is started at once if it fits beside those that run; its loads overlap with their
 * steps. If it does not fit, the running ones keep the memory until it has waited max_defer_ns, then it gets
 * it. What was paid for with a load is used: the base that came in keeps the memory for at least half of
 * max_defer_ns, however many others are overdue, or they would swap after every step. So no base waits longer
 * than max_defer_ns times the bases before it, plus their loads. */
#ifndef SWITCHYARD_DAEMON_SCHED_H
#define SWITCHYARD_DAEMON_SCHED_H

#include "base/base.h"

struct sched_base {
    uint32_t runnable;        /* sequences with something to do and no open step */
    bool open;                /* has an open step that waits for loads */
    uint64_t missing_bytes;   /* of its segments (and its sequences' adapters) not in hbm */
    uint64_t resident_bytes;  /* what of it could be evicted: none of a held base */
    uint64_t served_ns;       /* when its last step ended; 0 = never */
    uint64_t waiting_ns;      /* since when it has been runnable without being served */
    uint64_t loaded_ns;       /* when its weights last came in; 0 = it had nothing to load */
    int32_t priority;         /* highest of its sequences */
};
struct sched_view {
    const struct sched_base *bases;
    uint32_t count;
    uint32_t last;            /* base of the last step, UINT32_MAX = none */
    uint64_t room_bytes;      /* hbm that is neither pinned, held nor KV: what weights may use */
    uint64_t max_defer_ns;
};
/* Index of the base whose step to open now, UINT32_MAX = none (nothing runnable, or all must wait). */
uint32_t sched_next(const struct sched_view *v, uint64_t now_ns);
/* When sched_next may answer differently though nothing else happens; UINT64_MAX = never. */
uint64_t sched_wake_ns(const struct sched_view *v, uint64_t now_ns);

/* How long steps have taken lately, loads left out. */
struct sched_pace {
    double decode_s; /* a step that only decodes; 0 = not known */
    double token_s;  /* what a prompt's token adds to a step; 0 = not known */
};
void sched_note_step(struct sched_pace *p, double seconds, uint32_t decoded, uint32_t prefilled);

/* How many prompt tokens the next step may take while `decoding` sequences (of any base that is resident) wait
 * for their next token: whole chunks when nobody decodes; otherwise as many as make the step at most
 * SCHED_STRETCH times as long as it would be without them, so that no token waits longer than that for somebody's
 * prompt, but never less than SCHED_PREFILL_MIN. A quarter of a chunk while the pace is not known (NULL). */
#define SCHED_STRETCH 1.8
#define SCHED_PREFILL_MIN 8
uint32_t sched_prefill_budget(uint32_t prefill_chunk, uint32_t decoding, const struct sched_pace *pace);

#endif
