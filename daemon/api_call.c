/* The life of one generation call: parse, prepare, submit, cancel, close. */
#include "daemon/api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "daemon/api_field.h"

/* A shorter prompt is rendered and tokenised before the engine could do anything with the news. */
#define EXPECT_BYTES 8192

/* ---- names ---------------------------------------------------------------------------------- */

/* Unguessable enough to be unique across restarts; the counter makes it unique within one. */
uint64_t api_fresh_bits(void)
{
    static _Atomic uint64_t counter;
    uint64_t seed[2] = {atomic_fetch_add(&counter, 1), clock_ns()}, noise = 0;
    if (getrandom(&noise, sizeof noise, GRND_NONBLOCK) != (ssize_t)sizeof noise)
        noise = clock_wall_ms();
    return hash64_of(seed, sizeof seed, noise);
}

static void name_call(struct api_call *c)
{
    snprintf(c->id, sizeof c->id, "%s-%016llx%08x", c->kind == API_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)api_fresh_bits(), (unsigned)api_fresh_bits());
    c->created_s = clock_wall_ms() / 1000;
}

/* ---- open ----------------------------------------------------------------------------------- */

static enum err_code check_prompts(const struct api_call *c, struct err *e)
{
    size_t count = api_prompts(c->root, e);
    if (count == 0)
        return e->code;
    if (count * (size_t)c->options.n <= API_ANSWERS_MAX)
        return ERR_OK;
    return err_set_param(e, ERR_INVALID, "n",
                         "%zu prompts with %lld choices each are more than "
                         "the %d answers one request may ask for",
                         count, (long long)c->options.n, API_ANSWERS_MAX);
}

enum err_code api_call_open(struct server *s, enum api_kind kind, const char *body, size_t len,
                            struct api_call **ret, struct err *e)
{
    struct api_call *c = mem_alloc(sizeof *c);
    c->server = s;
    c->kind = kind;
    c->body_bytes = len;
    c->received_ns = clock_ns();
    name_call(c);
    enum err_code code = field_parse_body(body, len, &c->root, e);
    if (code == ERR_OK)
        code = api_options_parse(c->root, kind, &c->options, e);
    if (code == ERR_OK && kind == API_CHAT)
        code = api_messages_parse(c->root, &c->messages, e);
    if (code == ERR_OK && kind == API_CHAT)
        code = api_tools_parse(c->root, &c->tools, e);
    if (code == ERR_OK && kind == API_COMPLETION)
        code = check_prompts(c, e);
    if (code != ERR_OK) {
        api_call_close(&c);
        return code;
    }
    *ret = c;
    return ERR_OK;
}

void api_call_close(struct api_call **c)
{
    struct api_call *gone = *c;
    *c = NULL;
    if (gone == NULL)
        return;
    for (size_t i = 0; i < gone->requests_count; i++)
        request_unref(&gone->requests[i]);
    api_options_done(&gone->options);
    api_messages_done(&gone->messages);
    api_tools_done(&gone->tools);
    for (size_t i = 0; i < API_CHOICES_MAX; i++)
        tool_parse_close(&gone->cursor[0][i].parse); /* a chat has one prompt */
    buf_done(&gone->head);
    json_decref(gone->root);
    free(gone);
}

/* ---- sampling: the client's word, else the configuration's, else the house's ---------------- */

static void set_real(float *to, double client, double configured)
{
    if (!isnan(client))
        *to = (float)client;
    else if (!isnan(configured))
        *to = (float)configured;
}

static enum err_code fill_bias(const struct api_call *c, struct request *r, struct err *e)
{
    const struct api_options *o = &c->options;
    int32_t vocab = tokenizer_vocab(expert_tokenizer(c->expert));
    for (size_t i = 0; i < o->bias_count; i++)
        if (o->bias[i].id >= vocab)
            return err_set_param(e, ERR_INVALID, "logit_bias",
                                 "'logit_bias' has the token %d, but the expert's vocabulary ends "
                                 "at %d",
                                 o->bias[i].id, vocab - 1);
    if (o->bias_count == 0)
        return ERR_OK;
    struct logit_bias *bias = mem_array(o->bias_count, sizeof *bias);
    memcpy(bias, o->bias, o->bias_count * sizeof *bias);
    r->sampling.bias = bias;
    r->sampling.bias_count = o->bias_count;
    return ERR_OK;
}

static void fill_sampling(const struct api_call *c, const struct conf_expert *conf,
                          struct sampling *s)
{
    const struct api_options *o = &c->options;
    static const struct conf_sampling unset = {(double)NAN, (double)NAN, (double)NAN, (double)NAN,
                                               -1,          -1,          -1};
    const struct conf_sampling *d = conf != NULL ? &conf->defaults : &unset;
    set_real(&s->temperature, o->temperature, d->temperature);
    set_real(&s->top_p, o->top_p, d->top_p);
    set_real(&s->min_p, o->min_p, d->min_p);
    set_real(&s->typical_p, o->typical_p, (double)NAN);
    set_real(&s->repetition_penalty, o->repetition_penalty, d->repetition_penalty);
    set_real(&s->presence_penalty, o->presence_penalty, (double)NAN);
    set_real(&s->frequency_penalty, o->frequency_penalty, (double)NAN);
    int64_t top_k = o->top_k >= 0 ? o->top_k : d->top_k;
    if (top_k > 0)
        s->top_k = (int32_t)BASE_MIN(top_k, INT32_MAX);
    if (o->min_tokens > 0)
        s->min_tokens = (uint32_t)o->min_tokens;
    s->ignore_eos = o->ignore_eos;
    if (o->seed_given)
        s->seed = (uint64_t)o->seed;
    else
        s->seed = d->seed >= 0 ? (uint64_t)d->seed : api_fresh_bits();
}

/* ---- requests ------------------------------------------------------------------------------- */

static enum err_code check_context(const struct api_call *c, size_t tokens, uint32_t context,
                                   struct err *e)
{
    const char *param = c->kind == API_CHAT ? "messages" : "prompt";
    if (tokens < context || (tokens == context && c->options.max_tokens == 0))
        return ERR_OK;
    return err_set_param(e, ERR_CONTEXT, param,
                         "expert '%s' has a context of %u tokens, but the %s come to %zu tokens; "
                         "at least one more is needed for the answer: shorten them",
                         expert_info(c->expert)->name, context, param, tokens);
}

static uint32_t token_cap(const struct api_call *c, const struct server_expert *serving,
                          size_t prompt_tokens)
{
    uint32_t room = serving->context - (uint32_t)prompt_tokens;
    int64_t asked = c->options.max_tokens;
    if (asked < 0 && serving->conf != NULL && serving->conf->defaults.max_tokens > 0)
        asked = serving->conf->defaults.max_tokens;
    return asked >= 0 && asked < room ? (uint32_t)asked : room;
}

static enum err_code tokens_of(struct api_call *c, size_t prompt_idx, struct token_list *ret,
                               struct err *e)
{
    if (c->kind == API_CHAT)
        return api_chat_tokens(c, ret, e);
    return api_completion_tokens(c, prompt_idx, ret, e);
}

static enum err_code fill_request(struct api_call *c, size_t prompt_idx, struct request *r,
                                  struct err *e)
{
    const struct api_options *o = &c->options;
    const struct server_expert *serving = server_expert_of(c->server, c->expert);
    memcpy(r->id, c->id, sizeof r->id);
    r->created_s = c->created_s;
    r->expert = c->expert;
    r->priority = serving->priority;
    r->conversation = c->conversation;
    enum err_code code = tokens_of(c, prompt_idx, &r->prompt, e);
    if (code == ERR_OK)
        code = check_context(c, r->prompt.count, serving->context, e);
    if (code == ERR_OK)
        code = fill_bias(c, r, e);
    if (code != ERR_OK)
        return code;
    fill_sampling(c, serving->conf, &r->sampling);
    /* Prompts of one body with one seed still get their own streams of numbers. */
    r->sampling.seed += prompt_idx * API_CHOICES_MAX;
    r->grammar = grammar_ref(o->grammar);
    r->max_tokens = token_cap(c, serving, r->prompt.count);
    r->choices_count = (uint32_t)o->n;
    r->cache_prompt = o->cache_prompt;
    r->want_logprobs = o->want_logprobs;
    r->score_prompt = o->want_logprobs && o->echo;
    r->logprobs = !o->want_logprobs ? 0 : o->top_logprobs > 0 ? (uint32_t)o->top_logprobs : 255;
    for (size_t i = 0; i < o->stops_count; i++)
        r->stops[r->stops_count++] = mem_strdup(o->stops[i]);
    r->account.received_ns = c->received_ns;
    r->account.route_ns = c->route_ns;
    r->account.reason = c->reason;
    r->account.confidence = c->confidence;
    r->account.prompt_tokens = (uint32_t)r->prompt.count;
    return ERR_OK;
}

enum err_code api_call_prepare(struct api_call *c, struct router_scratch *scratch, struct err *e)
{
    enum err_code code = api_choose_expert(c, scratch, e);
    if (code != ERR_OK)
        return code;
    if (!expert_ok(c->expert, e)) {
        err_wrap(e, "expert '%s' cannot serve", expert_info(c->expert)->name);
        e->code = ERR_LOAD_FAILED;
        return ERR_LOAD_FAILED;
    }
    if (c->body_bytes > EXPECT_BYTES)
        engine_expect(c->server->engine, c->expert);
    if (c->kind == API_CHAT)
        code = api_tools_prepare(c, e);
    if (code != ERR_OK)
        return code;
    size_t prompts = c->kind == API_CHAT ? 1 : api_prompts(c->root, e);
    for (size_t i = 0; i < prompts; i++) {
        struct request *r = request_open();
        c->requests[c->requests_count++] = r;
        code = fill_request(c, i, r, e);
        if (code != ERR_OK)
            return code;
    }
    for (size_t i = 0; i < prompts; i++)
        request_prepare_output(c->requests[i]);
    return ERR_OK;
}

/* ---- running -------------------------------------------------------------------------------- */

enum err_code api_call_submit(struct api_call *c, void (*notify)(struct request *r), void *owner,
                              uint32_t *ret_retry_after_s, struct err *e)
{
    enum err_code code = ERR_OK;
    uint64_t now = clock_ns();
    for (size_t i = 0; i < c->requests_count && code == ERR_OK; i++) {
        struct request *r = c->requests[i];
        r->notify = notify;
        r->owner = owner;
        r->account.submitted_ns = now;
        code = engine_submit(c->server->engine, r, ret_retry_after_s, e);
        if (code == ERR_OK)
            atomic_fetch_add(&c->given, 1);
    }
    if (code != ERR_OK)
        api_call_cancel(c);
    atomic_store(&c->submitted, true);
    return code;
}

void api_call_cancel(struct api_call *c)
{
    unsigned given = atomic_load(&c->given);
    for (unsigned i = 0; i < given; i++)
        engine_cancel(c->server->engine, c->requests[i]);
}

bool api_call_idle(const struct api_call *c)
{
    /* Acquire pairs with the engine's release of DONE: account and error are readable after it. */
    unsigned given = atomic_load(&c->given);
    for (unsigned i = 0; i < given; i++)
        if (atomic_load_explicit(&c->requests[i]->state, memory_order_acquire) != REQUEST_DONE)
            return false;
    return true;
}

bool api_call_done(const struct api_call *c)
{
    return atomic_load(&c->submitted) && api_call_idle(c);
}

enum request_state api_call_state(const struct api_call *c, uint32_t *ret_load_permille)
{
    enum request_state farthest = REQUEST_NEW;
    *ret_load_permille = 0;
    for (size_t i = 0; i < c->requests_count; i++) {
        struct request *r = c->requests[i];
        enum request_state state = (enum request_state)atomic_load(&r->state);
        if (state > farthest) {
            farthest = state;
            *ret_load_permille = atomic_load(&r->load_permille);
        }
    }
    return farthest;
}

/* The end of one choice, NONE while it runs. */
static enum request_finish choice_finish(const struct request *r, uint32_t choice_idx)
{
    const struct request_choice *choice = &r->choice[choice_idx];
    uint32_t count = request_events(choice);
    return count > 0 ? choice->events[count - 1].finish : REQUEST_FINISH_NONE;
}

enum err_code api_call_outcome(const struct api_call *c, struct err *e)
{
    for (size_t i = 0; i < c->requests_count; i++) {
        const struct request *r = c->requests[i];
        for (uint32_t k = 0; k < r->choices_count; k++) {
            enum request_finish finish = choice_finish(r, k);
            if (finish == REQUEST_FINISH_ERROR) {
                *e = r->error;
                if (e->code == ERR_OK)
                    err_set(e, ERR_INTERNAL, "generation failed without a cause");
                return e->code;
            }
            if (finish == REQUEST_FINISH_CANCELLED || finish == REQUEST_FINISH_NONE)
                return err_set(e, ERR_SHUTDOWN,
                               "the server stopped before the answer was whole; "
                               "try again");
        }
    }
    return ERR_OK;
}

void api_call_usage(const struct api_call *c, struct api_usage *ret)
{
    *ret = (struct api_usage){0};
    for (size_t i = 0; i < c->requests_count; i++) {
        const struct request_account *a = &c->requests[i]->account;
        ret->prompt_tokens += a->prompt_tokens;
        ret->cached_tokens += a->cached_tokens;
        ret->completion_tokens += a->completion_tokens;
    }
}
