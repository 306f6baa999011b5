/* Held text is at most one stop string long, so every push is O(stops x their length). */
#include <string.h>

#include "daemon/output.h"

void output_init(struct output *o, const struct tokenizer *t, char *const *stops, uint32_t stops_count)
{
    *o = (struct output){.tokenizer = t, .stops = stops, .stops_count = stops_count};
    char reserve[1024] = {0};
    buf_append(&o->held, reserve, sizeof(reserve));
    buf_clear(&o->held);
}

void output_done(struct output *o)
{
    buf_done(&o->held);
}

/* Where the earliest stop string begins in the held text, or SIZE_MAX. */
static size_t find_stop(const struct output *o)
{
    size_t first = SIZE_MAX;
    for (uint32_t i = 0; i < o->stops_count; i++) {
        const char *hit = memmem(o->held.data, o->held.len, o->stops[i], strlen(o->stops[i]));
        if (hit && (size_t)(hit - o->held.data) < first)
            first = (size_t)(hit - o->held.data);
    }
    return first;
}

/* Length of the longest end of the held text with which some stop string begins. */
static size_t undecided(const struct output *o)
{
    size_t most = 0;
    for (uint32_t i = 0; i < o->stops_count; i++) {
        size_t stop_len = strlen(o->stops[i]);
        for (size_t n = BASE_MIN(stop_len - 1, o->held.len); n > most; n--)
            if (memcmp(o->held.data + o->held.len - n, o->stops[i], n) == 0)
                most = n;
    }
    return most;
}

static void show(struct output *o, size_t n, struct buf *visible)
{
    buf_append(visible, o->held.data, n);
    memmove(o->held.data, o->held.data + n, o->held.len - n);
    o->held.len -= n;
    o->held.data[o->held.len] = 0;
}

bool output_push(struct output *o, int32_t token, struct buf *visible)
{
    detok_push(&o->detok, o->tokenizer, token, &o->held);
    if (o->held.len == 0)
        return false;
    size_t stop = find_stop(o);
    if (stop != SIZE_MAX) {
        show(o, stop, visible);
        return true;
    }
    show(o, o->held.len - undecided(o), visible);
    return false;
}

void output_end(struct output *o, struct buf *visible)
{
    detok_end(&o->detok, &o->held);
    if (o->held.len)
        show(o, o->held.len, visible);
}
