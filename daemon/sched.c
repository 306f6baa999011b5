/* The rules of sched.h over the view, each a predicate of its own. */
#include "daemon/sched.h"

/* Bytes that bases with work hold now: they should keep them while they run. Those of an open step are
 * pinned and thus not part of room_bytes in the first place. */
static uint64_t busy_bytes(const struct sched_view *v, uint32_t except)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < v->count; i++)
        if (i != except && v->bases[i].runnable && !v->bases[i].open)
            sum += v->bases[i].resident_bytes;
    return sum;
}

static bool fits_beside(const struct sched_view *v, uint32_t idx)
{
    const struct sched_base *b = &v->bases[idx];
    return b->missing_bytes + b->resident_bytes + busy_bytes(v, idx) <= v->room_bytes;
}

static bool overdue(const struct sched_view *v, const struct sched_base *b, uint64_t now_ns)
{
    return now_ns >= b->waiting_ns && now_ns - b->waiting_ns >= v->max_defer_ns;
}

/* Until when some other base that just loaded may use what it loaded; 0 = none. */
static uint64_t turn_end(const struct sched_view *v, uint32_t except, uint64_t now_ns)
{
    uint64_t latest = 0;
    for (uint32_t i = 0; i < v->count; i++) {
        const struct sched_base *b = &v->bases[i];
        uint64_t end = b->loaded_ns + v->max_defer_ns / 2;
        if (i != except && b->runnable && b->missing_bytes == 0 && b->loaded_ns && now_ns < end)
            latest = BASE_MAX(latest, end);
    }
    return latest;
}

/* Must load and would push out what others are using: not before it has waited its time and the others
 * have had their turn, unless nobody else has anything to do. */
static bool must_wait(const struct sched_view *v, uint32_t idx, uint64_t now_ns)
{
    const struct sched_base *b = &v->bases[idx];
    if (b->missing_bytes == 0 || fits_beside(v, idx))
        return false;
    if (overdue(v, b, now_ns))
        return turn_end(v, idx, now_ns) > 0;
    for (uint32_t i = 0; i < v->count; i++)
        if (i != idx && (v->bases[i].open || (v->bases[i].runnable && v->bases[i].missing_bytes == 0)))
            return true;
    return false;
}

/* Overdue before the rest and the longest waiting of them first, so that priority delays nobody beyond the
 * bound; then higher priority, then longest unserved; the base of the last step loses ties. */
static bool better(const struct sched_view *v, uint32_t a, uint32_t b, uint64_t now_ns)
{
    const struct sched_base *x = &v->bases[a], *y = &v->bases[b];
    if (overdue(v, x, now_ns) != overdue(v, y, now_ns))
        return overdue(v, x, now_ns);
    if (overdue(v, x, now_ns) && x->waiting_ns != y->waiting_ns)
        return x->waiting_ns < y->waiting_ns;
    if (x->priority != y->priority)
        return x->priority > y->priority;
    if (x->served_ns != y->served_ns)
        return x->served_ns < y->served_ns;
    return b == v->last;
}

uint32_t sched_next(const struct sched_view *v, uint64_t now_ns)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < v->count; i++) {
        const struct sched_base *b = &v->bases[i];
        if (b->runnable == 0 || b->open || must_wait(v, i, now_ns))
            continue;
        if (best == UINT32_MAX || better(v, i, best, now_ns))
            best = i;
    }
    return best;
}

uint64_t sched_wake_ns(const struct sched_view *v, uint64_t now_ns)
{
    uint64_t wake = UINT64_MAX;
    for (uint32_t i = 0; i < v->count; i++) {
        const struct sched_base *b = &v->bases[i];
        if (b->runnable && !b->open && must_wait(v, i, now_ns))
            wake = BASE_MIN(wake, BASE_MAX(b->waiting_ns + v->max_defer_ns, turn_end(v, i, now_ns)));
    }
    return wake;
}

static void note(double *mean, double now)
{
    *mean = *mean > 0 ? 0.75 * *mean + 0.25 * now : now;
}

/* A mixed step tells what its prompt tokens added, small chunks being dearer than large ones; a step of a prompt
 * alone is only the first guess. */
void sched_note_step(struct sched_pace *p, double seconds, uint32_t decoded, uint32_t prefilled)
{
    if (decoded > 0 && prefilled == 0)
        note(&p->decode_s, seconds);
    else if (decoded > 0 && p->decode_s > 0)
        note(&p->token_s, BASE_MAX(seconds - p->decode_s, seconds * 0.1) / prefilled);
    else if (decoded == 0 && prefilled > 0 && p->token_s <= 0)
        p->token_s = seconds / prefilled;
}

uint32_t sched_prefill_budget(uint32_t prefill_chunk, uint32_t decoding, const struct sched_pace *pace)
{
    if (decoding == 0)
        return prefill_chunk;
    if (pace == NULL || pace->decode_s <= 0 || pace->token_s <= 0)
        return BASE_MIN(prefill_chunk, BASE_MAX(prefill_chunk / 4, 32));
    double tokens = (SCHED_STRETCH - 1) * pace->decode_s / pace->token_s;
    return BASE_MIN(prefill_chunk, BASE_MAX((uint32_t)BASE_MIN(tokens, 1e6), SCHED_PREFILL_MIN));
}
