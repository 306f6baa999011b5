/* The engine's inside, shared by its three files: lanes (engine_lane.c), steps (engine_step.c) and the loop
 * (engine.c). Everything is touched by the engine thread alone, except what is marked. Private. */
#ifndef SWITCHYARD_DAEMON_ENGINE_PRIVATE_H
#define SWITCHYARD_DAEMON_ENGINE_PRIVATE_H

#include "daemon/engine.h"
#include "daemon/engine_order.h"
#include "daemon/markov.h"
#include "daemon/output.h"
#include "daemon/sched.h"

#define STEPS_MAX 4
#define TEXT_BLOCK 2048

/* One running sequence of a request (one per choice). */
struct lane {
    struct request *request; /* NULL = free */
    uint32_t choice_idx, base_idx;
    struct sequence *seq;
    struct output output;
    struct memtier_lease *load;  /* its adapter or its pages are being brought in: not yet part of any step */
    bool fetched, fetching;      /* pages were asked for; they are what `load` is */
    uint64_t load_start_ns, last_token_ns;
    uint64_t admission_no;       /* rising: prompts are run in this order */
    size_t delivered;            /* tokens handed out */
    struct lane *leader;         /* another choice of the request that runs their prompt; NULL = none, or done */
    bool in_step;
    bool parked;                 /* gave its KV pages to others; goes on when there is room again */
    char *text;                  /* rest of the current text block */
    size_t text_room;
};

struct engine_request {
    struct request *request;
    uint32_t lanes_left;
    struct engine_request *next; /* waiting list, priority then arrival */
};

struct open_step {
    struct expert_step *step;    /* NULL = free */
    struct lane **lanes;         /* [max_sequences] */
    uint32_t lanes_count;
    uint64_t decided_ns;
    bool started, switched;
    enum memtier_tier origin;
};

/* An expert's memory as operators and the configuration want it. */
struct engine_memory {
    bool held;
    uint64_t used_ns, ttl_ns;
};

struct engine {
    struct engine_options opt;
    pthread_t thread;
    struct ring *ring;           /* submissions */
    atomic_bool draining, stop, ready; /* any thread */
    atomic_uint queued, running; /* engine writes, any thread reads */

    struct lane *lanes;          /* [max_sequences] */
    uint32_t lanes_top;          /* none from here on is used: what every loop over lanes goes to */
    struct engine_request *waiting;
    struct sched_base *bases;    /* [bases] rebuilt for each decision, served/waiting kept */
    uint64_t *retry_ns;          /* [bases] a base that did not fit is not tried again before that */
    uint32_t bases_count, last_base;
    uint32_t part_turn;          /* where the next batch that must run in parts begins */
    uint64_t admissions;
    struct sched_pace pace;
    bool short_of_room;          /* KV pages keep a base from its weights: nobody is admitted until some end */
    uint32_t parked;             /* lanes */
    struct open_step open[STEPS_MAX];
    struct step_item *items;     /* [max_sequences] */
    uint64_t *expert_step_no;    /* [experts] number of the last step it was in */
    uint64_t step_no;
    struct buf visible;
    struct ring *orders;         /* submissions of engine_order.h */
    struct ring *expected;       /* experts of requests that are still being rendered */
    struct markov *markov;       /* what conversations will want next */
    struct engine_order *open_orders; /* those that wait for a load */
    struct engine_memory *memory; /* [experts] */
    uint64_t looked_ns, shown_ns;
    bool queue_changed;          /* who waits is not who waited when loads were last looked ahead */
    struct memtier_lease *warm;  /* the generalist on its way in */
    bool holding;                /* the generalist's segments are held */

    struct lock stats_lock;      /* guards stats, expert_tokens and places */
    struct engine_place *places; /* [experts] */
    _Atomic uint32_t loading;    /* engine writes, any thread reads */
    _Atomic uint64_t missing_bytes; /* of the loads that running requests wait for; the same */
    _Atomic uint64_t expired;
    struct engine_stats stats;
    uint64_t *expert_tokens;
    _Atomic uint64_t request_ns; /* moving average of a request's time on a lane, for Retry-After */
};

/* engine_lane.c */
void engine_set_state(struct request *r, enum request_state state);
void engine_publish(struct lane *l, int32_t token, const struct buf *visible, enum request_finish finish,
                    bool with_logprobs);
/* The last event of a lane: what was held back, and why it ended. The lane is free afterwards. */
void engine_finish_lane(struct engine *g, struct lane *l, enum request_finish finish, bool stop_string);
void engine_fail_lane(struct engine *g, struct lane *l, const struct err *e);
void engine_take_submissions(struct engine *g);
void engine_admit(struct engine *g);
/* Something is pinned, loading or being copied now: what does not fit may fit when that ends. */
bool engine_in_flight(struct engine *g);
bool engine_lane_cancelled(const struct engine *g, const struct lane *l);
void engine_drop_cancelled(struct engine *g);
void engine_move_adapters(struct engine *g);
/* The lane that came last gives its KV pages back and waits; false = there is but one that could. */
bool engine_park_youngest(struct engine *g);
/* The one that has waited longest goes on, if there is room for it. */
void engine_unpark(struct engine *g);
/* Choices whose prompt another one has run take its pages. */
void engine_fork_choices(struct engine *g);
void engine_note_reused(struct engine *g, size_t tokens);

/* engine_order.c */
enum err_code engine_open_orders(struct engine *g, struct err *e) BASE_NODISCARD;
void engine_close_orders(struct engine *g);
void engine_run_orders(struct engine *g);
void engine_end_orders(struct engine *g); /* the thread ends: refuse what is left */
/* Once a loop: look-ahead, times to live, and where everything is. */
void engine_look(struct engine *g);
/* Progress of loads, for the requests that wait for them. */
void engine_note_loads(struct engine *g);
/* +1 when a request is queued, -1 when it has ended. */
void engine_note_demand(struct engine *g, const struct request *r, int change);
/* The request was answered: what its conversation will probably want next may come in. */
void engine_note_turn(struct engine *g, const struct request *r);

/* engine_step.c */
void engine_close_step(struct open_step *o);
/* Every open step moves as far as its weights have arrived. True = something ran. */
bool engine_advance(struct engine *g);
/* Opens the step that the scheduler names. False = nothing to open now; *ret_wake_ns says until when. */
bool engine_open_next(struct engine *g, uint64_t *ret_wake_ns);

#endif
