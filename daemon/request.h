/* One API request on its way through the house: made on an HTTP thread, run by the engine thread,
 * read back by the HTTP side while it runs. Private to daemon/.
 *
 * Ownership: reference-counted; the HTTP side holds one reference, the engine another from a
 * successful engine_submit until it has published the final event. Fields say who writes them and when
 * others may read. The engine publishes output by storing `events_count` (release); readers load it
 * (acquire) and then read events and text below it. Nothing is locked per token. */
#ifndef SWITCHYARD_DAEMON_REQUEST_H
#define SWITCHYARD_DAEMON_REQUEST_H

#include <stdatomic.h>

#include "base/base.h"
#include "experts/experts.h"
#include "router/router.h"

#define REQUEST_STOPS_MAX 16     /* the API allows 4; room for template-given ones */
#define REQUEST_CHOICES_MAX 16
#define REQUEST_TOP_LOGPROBS_MAX 20

enum request_finish {
    REQUEST_FINISH_NONE,
    REQUEST_FINISH_STOP,      /* end token or stop string */
    REQUEST_FINISH_LENGTH,    /* a limit was hit */
    REQUEST_FINISH_CANCELLED,
    REQUEST_FINISH_ERROR,     /* see request.error */
};

enum request_state { REQUEST_NEW, REQUEST_QUEUED, REQUEST_LOADING, REQUEST_RUNNING, REQUEST_DONE };

/* One token's worth of output; text may be empty while UTF-8 or a stop string is held back. */
struct request_event {
    const char *text;         /* into the choice's text blocks; stable until the request is freed */
    uint32_t text_len;
    int32_t token;            /* -1: text flushed at the end without a token */
    enum request_finish finish; /* NONE but for the last event of a choice */
    float logprob;
    uint32_t top_count;
    const struct token_logprob *top; /* [top_count]; stable */
};

struct request_choice {
    struct request_event *events; /* [events_cap], engine writes */
    uint32_t events_cap;
    _Atomic uint32_t events_count; /* engine: release; readers: acquire */
};

/* The account: what the request cost. Engine writes, valid to others once state is DONE; route fields
 * and prompt_tokens are written by the HTTP thread before submit. Host time in ns. */
struct request_account {
    uint64_t received_ns, submitted_ns, admitted_ns, first_token_ns, done_ns; /* clock_ns stamps */
    uint64_t route_ns, queue_ns, load_ns, prefill_ns, decode_ns, node_ns;
    uint64_t load_bytes;
    enum memtier_tier origin;  /* farthest tier its first step needed */
    bool switched;             /* the first step ran another expert than the step before it */
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
    enum router_reason reason;
    double confidence;
};

struct request {
    atomic_int refs;
    char id[48];               /* "chatcmpl-..." */
    uint64_t created_s;

    /* What to run: written by the HTTP thread before submit, then read only. */
    struct expert *expert;
    struct token_list prompt;
    struct sampling sampling;  /* bias array owned by the request */
    struct grammar *grammar;   /* a reference; NULL = the answer may be anything */
    uint32_t max_tokens;
    bool score_prompt;         /* log-probabilities of the prompt's own tokens are wanted: see scores */
    uint32_t logprobs;         /* top alternatives; 255 = chosen token only; 0 = none */
    bool want_logprobs;
    char *stops[REQUEST_STOPS_MAX]; /* owned */
    uint32_t stops_count;
    uint32_t choices_count;
    int32_t priority;
    uint64_t conversation;     /* tells it from others by its first words; 0 = none */
    bool cache_prompt;         /* KV of others with the same beginning is used, and one's own left to them */

    /* Output. `scores`: in `memory`; the first choice's sequence fills them, whole once that choice has an
     * event. */
    struct prompt_scores scores;
    struct request_choice choice[REQUEST_CHOICES_MAX];
    _Atomic int state;         /* enum request_state; engine writes */
    struct err error;          /* valid when a choice finished with ERROR */
    struct request_account account;
    _Atomic uint32_t load_permille; /* progress of loading, for SSE comments */

    /* HTTP side -> engine. */
    atomic_bool cancelled;     /* set by engine_cancel */

    /* Engine side -> HTTP side: called by the engine whenever something was published; must not block.
     * `owner` is the HTTP side's. */
    void (*notify)(struct request *r);
    void *owner;
    atomic_bool notified;      /* for the HTTP side's own de-duplication */

    struct engine_request *engine; /* the engine's bookkeeping */
    struct arena memory;       /* HTTP side before submit; engine's text blocks after */
};

/* refs = 1. */
struct request *request_open(void);
void request_ref(struct request *r);
void request_unref(struct request **r); /* frees at zero; any thread */
/* Sizes the output of every choice for max_tokens; call once, before submit. */
void request_prepare_output(struct request *r);
/* Events of a choice that may be read now. Any thread. */
uint32_t request_events(const struct request_choice *c);
const char *request_finish_name(enum request_finish f); /* "stop", "length", ... */

#endif
