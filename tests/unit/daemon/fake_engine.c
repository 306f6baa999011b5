/* An engine that says a scripted text. One thread per request: simple, and as unordered as it gets.
 */
#include "tests/unit/daemon/fake.h"
#include "daemon/engine_order.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/output.h"

struct engine {
    struct experts *experts;
    atomic_bool draining, stop;
    atomic_uint running, threads;
};

static pthread_mutex_t script_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_script script;
static struct buf last_prompt;
static _Atomic uint64_t cancelled, submitted;

void fake_engine_script(const struct fake_script *s)
{
    pthread_mutex_lock(&script_lock);
    script = *s;
    if (script.text == NULL)
        script.text = "Hello, world! ";
    if (script.tokens == 0)
        script.tokens = UINT32_MAX;
    pthread_mutex_unlock(&script_lock);
}

uint64_t fake_engine_cancelled(void)
{
    return atomic_load(&cancelled);
}

uint64_t fake_engine_submitted(void)
{
    return atomic_load(&submitted);
}

static void note_prompt(const struct request *r)
{
    pthread_mutex_lock(&script_lock);
    buf_clear(&last_prompt);
    buf_puts(&last_prompt, "");
    for (size_t i = 0; i < r->prompt.count; i++) {
        char byte = (char)r->prompt.ids[i];
        if (r->prompt.ids[i] >= 256)
            buf_printf(&last_prompt, "[%d]", r->prompt.ids[i]);
        else
            buf_append(&last_prompt, &byte, 1);
    }
    pthread_mutex_unlock(&script_lock);
}

void fake_engine_last_prompt(struct buf *out)
{
    pthread_mutex_lock(&script_lock);
    buf_clear(out);
    buf_append(out, last_prompt.data, last_prompt.len);
    pthread_mutex_unlock(&script_lock);
}

static void pause_us(uint64_t us)
{
    const struct timespec nap = {.tv_sec = (time_t)(us / 1000000),
                                 .tv_nsec = (long)(us % 1000000) * 1000};
    if (us > 0)
        nanosleep(&nap, NULL);
}

/* ---- one request ---- */

struct job {
    struct engine *engine;
    struct request *request;
    struct fake_script script;
    struct output output[REQUEST_CHOICES_MAX];
};

static void publish(struct request *r, uint32_t choice_idx, int32_t token, const struct buf *text,
                    enum request_finish finish)
{
    struct request_choice *c = &r->choice[choice_idx];
    uint32_t at = atomic_load(&c->events_count);
    struct request_event *ev = &c->events[at];
    if (at >= c->events_cap)
        abort();
    *ev = (struct request_event){.token = token, .finish = finish, .text = ""};
    if (text != NULL && text->len > 0) {
        char *copy = arena_alloc(&r->memory, text->len);
        memcpy(copy, text->data, text->len);
        ev->text = copy;
        ev->text_len = (uint32_t)text->len;
    }
    if (token >= 0 && r->want_logprobs) {
        uint32_t count = r->logprobs == 255 ? 0 : r->logprobs;
        struct token_logprob *top = arena_alloc(&r->memory, (count + 1) * sizeof *top);
        for (uint32_t i = 0; i < count; i++)
            top[i] = (struct token_logprob){.id = (int32_t)(('a' + i) % 256),
                                            .logprob = -0.1f * (float)(i + 1)};
        ev->logprob = -0.5f;
        ev->top = top;
        ev->top_count = count;
    }
    atomic_store_explicit(&c->events_count, at + 1, memory_order_release);
}

static bool is_cancelled(const struct job *j)
{
    if (atomic_load(&j->engine->stop))
        return true;
    return !j->script.deaf && atomic_load(&j->request->cancelled);
}

/* Returns how the request ends, NONE = go on. */
static enum request_finish one_token(struct job *j, uint32_t at, bool *ended)
{
    struct request *r = j->request;
    bool going = false;
    if (at < j->script.tokens && at < r->max_tokens)
        pause_us(j->script.token_us);
    for (uint32_t i = 0; i < r->choices_count; i++) {
        struct buf visible = {0};
        int32_t id = (unsigned char)j->script.text[at % strlen(j->script.text)];
        if (ended[i])
            continue;
        if (at >= j->script.tokens || r->max_tokens == 0) {
            output_end(&j->output[i], &visible);
            publish(r, i, -1, &visible,
                    r->max_tokens == 0 ? REQUEST_FINISH_LENGTH : REQUEST_FINISH_STOP);
            ended[i] = true;
        } else {
            bool stop = output_push(&j->output[i], id, &visible);
            r->account.completion_tokens++;
            publish(r, i, id, &visible, REQUEST_FINISH_NONE);
            buf_clear(&visible);
            ended[i] = stop || at + 1 >= r->max_tokens;
            if (ended[i] && !stop)
                output_end(&j->output[i], &visible);
            if (ended[i])
                publish(r, i, -1, &visible, stop ? REQUEST_FINISH_STOP : REQUEST_FINISH_LENGTH);
        }
        going |= !ended[i];
        buf_done(&visible);
    }
    return going ? REQUEST_FINISH_NONE : REQUEST_FINISH_STOP;
}

static void finish_all(struct job *j, bool *ended, enum request_finish finish)
{
    for (uint32_t i = 0; i < j->request->choices_count; i++)
        if (!ended[i])
            publish(j->request, i, -1, NULL, finish);
}

/* Token i of the prompt: -i / 8, and the alternatives as for the answer's tokens. */
static void score_prompt(struct request *r)
{
    const struct prompt_scores *s = &r->scores;
    for (size_t i = 1; r->score_prompt && i < r->prompt.count; i++) {
        s->logprob[i] = -(float)i / 8;
        for (uint32_t k = 0; k < s->top_count; k++)
            s->top[i * s->top_count + k] =
                (struct token_logprob){.id = (int32_t)('a' + k), .logprob = -0.1f * (float)(k + 1)};
    }
}

static void generate(struct job *j)
{
    struct request *r = j->request;
    bool ended[REQUEST_CHOICES_MAX] = {0};
    score_prompt(r);
    for (uint32_t at = 0;; at++) {
        if (is_cancelled(j)) {
            finish_all(j, ended, REQUEST_FINISH_CANCELLED);
            atomic_fetch_add(&cancelled, 1);
            return;
        }
        if (j->script.fail_code != ERR_OK && at >= j->script.fail_after) {
            err_set(&r->error, j->script.fail_code, "the scripted failure");
            finish_all(j, ended, REQUEST_FINISH_ERROR);
            return;
        }
        enum request_finish finish = one_token(j, at, ended);
        if (r->account.first_token_ns == 0)
            r->account.first_token_ns = clock_ns();
        if (finish != REQUEST_FINISH_NONE)
            return;
        r->notify(r);
    }
}

static void *run(void *arg)
{
    struct job *j = arg;
    struct request *r = j->request;
    for (uint32_t i = 0; i < r->choices_count; i++)
        output_init(&j->output[i], expert_tokenizer(r->expert), r->stops, r->stops_count);
    if (j->script.load_ms > 0) {
        atomic_store(&r->load_permille, 420);
        atomic_store_explicit(&r->state, REQUEST_LOADING, memory_order_release);
        for (uint32_t i = 0; i < j->script.load_ms && !is_cancelled(j); i++)
            pause_us(1000);
    }
    atomic_store_explicit(&r->state, REQUEST_RUNNING, memory_order_release);
    r->account.admitted_ns = clock_ns();
    r->account.queue_ns = r->account.admitted_ns - r->account.submitted_ns;
    r->account.origin = j->script.load_ms > 0 ? MEMTIER_NVME : MEMTIER_HBM;
    generate(j);
    r->account.done_ns = clock_ns();
    for (uint32_t i = 0; i < r->choices_count; i++)
        output_done(&j->output[i]);
    atomic_store_explicit(&r->state, REQUEST_DONE, memory_order_release);
    r->notify(r);
    request_unref(&r);
    atomic_fetch_sub(&j->engine->running, 1);
    atomic_fetch_sub(&j->engine->threads, 1);
    free(j);
    return NULL;
}

/* ---- engine.h ---- */

enum err_code engine_open(const struct engine_options *opt, struct engine **ret, struct err *e)
{
    struct engine *g = mem_alloc(sizeof *g);
    g->experts = opt->experts;
    atomic_store(&cancelled, 0);
    atomic_store(&submitted, 0);
    fake_engine_script(&(struct fake_script){.tokens = 14});
    *ret = g;
    return ERR_OK;
}

struct engine *fake_engine_open(struct experts *x)
{
    struct engine *g = NULL;
    struct engine_options o = {.experts = x};
    return engine_open(&o, &g, NULL) == ERR_OK ? g : NULL;
}

enum err_code engine_submit(struct engine *g, struct request *r, uint32_t *ret_retry_after_s,
                            struct err *e)
{
    struct job *j = mem_alloc(sizeof *j);
    pthread_t thread;
    pthread_mutex_lock(&script_lock);
    j->script = script;
    pthread_mutex_unlock(&script_lock);
    *ret_retry_after_s = 7;
    enum err_code code = atomic_load(&g->draining) ? ERR_SHUTDOWN : j->script.submit_code;
    if (code != ERR_OK) {
        free(j);
        return err_set(e, code, "the engine refuses");
    }
    note_prompt(r);
    j->engine = g;
    j->request = r;
    request_ref(r);
    atomic_store_explicit(&r->state, REQUEST_QUEUED, memory_order_release);
    atomic_fetch_add(&submitted, 1);
    atomic_fetch_add(&g->running, 1);
    atomic_fetch_add(&g->threads, 1);
    if (thread_start(&thread, "fake", run, j, e) != ERR_OK)
        abort();
    pthread_detach(thread);
    return ERR_OK;
}

void engine_expect(struct engine *g, struct expert *ex)
{
}

void engine_cancel(struct engine *g, struct request *r)
{
    atomic_store(&r->cancelled, true);
}

void engine_drain(struct engine *g)
{
    atomic_store(&g->draining, true);
}

bool engine_ready(struct engine *g)
{
    return true;
}

uint32_t engine_queued(struct engine *g)
{
    (void)g;
    return 3;
}

bool engine_idle(struct engine *g)
{
    return atomic_load(&g->running) == 0;
}

void engine_close(struct engine **gp)
{
    struct engine *g = *gp;
    if (g == NULL)
        return;
    atomic_store(&g->stop, true);
    while (atomic_load(&g->threads) > 0)
        pause_us(1000);
    pause_us(2000); /* a thread counts itself out just before it returns */
    buf_done(&last_prompt);
    free(g);
    *gp = NULL;
}

void engine_stats(struct engine *g, struct engine_stats *ret)
{
    *ret = (struct engine_stats){.running = atomic_load(&g->running), .steps = 3};
}

void engine_expert_tokens(struct engine *g, uint64_t *ret, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ret[i] = i;
}

void engine_places(struct engine *g, struct engine_place *ret, size_t count)
{
    (void)g;
    memset(ret, 0, count * sizeof *ret);
}
