/* The life of struct request: reference counting and the sizes of its output. The fields are filled
 * in by api_*.c and run by the engine. */
#include "daemon/request.h"

#include <stdlib.h>

/* Output text of a typical answer fits one block; long answers take more, none is moved. */
#define REQUEST_TEXT_BLOCK (8 * BASE_KIB)

struct request *request_open(void)
{
    struct request *r = mem_alloc(sizeof *r);
    atomic_init(&r->refs, 1);
    atomic_init(&r->state, REQUEST_NEW);
    sampling_init(&r->sampling);
    r->choices_count = 1;
    r->cache_prompt = true;
    arena_init(&r->memory, REQUEST_TEXT_BLOCK);
    return r;
}

void request_ref(struct request *r)
{
    /* Relaxed: whoever calls this already holds a reference. */
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
}

static void request_free(struct request *r)
{
    for (size_t i = 0; i < REQUEST_CHOICES_MAX; i++)
        free(r->choice[i].events);
    for (size_t i = 0; i < r->stops_count; i++)
        free(r->stops[i]);
    free((void *)r->sampling.bias);
    free(r->prompt.ids);
    grammar_unref(&r->grammar);
    arena_done(&r->memory);
    free(r);
}

void request_unref(struct request **r)
{
    struct request *gone = *r;
    *r = NULL;
    /* Release pairs with the acquire of whoever drops the last reference: it sees all writes. */
    if (gone != NULL && atomic_fetch_sub_explicit(&gone->refs, 1, memory_order_acq_rel) == 1)
        request_free(gone);
}

static void prepare_scores(struct request *r)
{
    struct prompt_scores *s = &r->scores;
    s->top_count = r->logprobs == 255 ? 0 : r->logprobs;
    s->logprob = arena_alloc(&r->memory, r->prompt.count * sizeof *s->logprob);
    if (s->top_count > 0)
        s->top = arena_alloc(&r->memory, r->prompt.count * s->top_count * sizeof *s->top);
}

void request_prepare_output(struct request *r)
{
    if (r->score_prompt)
        prepare_scores(r);
    /* One event per token, one for text flushed at the end, one for an error. */
    uint32_t cap = r->max_tokens < UINT32_MAX - 2 ? r->max_tokens + 2 : UINT32_MAX;
    for (uint32_t i = 0; i < r->choices_count; i++) {
        r->choice[i].events = mem_array(cap, sizeof *r->choice[i].events);
        r->choice[i].events_cap = cap;
    }
}

uint32_t request_events(const struct request_choice *c)
{
    /* Acquire pairs with the engine's release in publish: events below the count are whole. */
    return atomic_load_explicit(&c->events_count, memory_order_acquire);
}

const char *request_finish_name(enum request_finish f)
{
    static const char *const names[] = {"none", "stop", "length", "cancelled", "error"};
    return names[f];
}
