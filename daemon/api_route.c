/* Which expert answers: the one the client named, or for `auto` the one the router picks. */
#include "daemon/api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"

#define ROUTE_TURNS_MAX                                                                            \
    64 /* user turns that are read, newest last; the router bounds their bytes */

bool api_key_may_use(const struct server *s, const struct expert *ex, const char *key)
{
    const struct conf_expert *conf = server_expert_of(s, ex)->conf;
    bool may = conf == NULL || conf->keys_count == 0;
    /* The key was compared in constant time when it came in: here it is one of the known ones. */
    for (size_t i = 0; !may && key != NULL && i < conf->keys_count; i++)
        may = strcmp(conf->keys[i], key) == 0;
    return may;
}

enum err_code api_check_key(const struct server *s, const struct expert *ex, const char *key,
                            struct err *e)
{
    if (api_key_may_use(s, ex, key))
        return ERR_OK;
    return err_set_param(e, ERR_PERMISSION, "model", "this API key may not use the expert '%s'",
                         expert_info(ex)->name);
}

static enum err_code choose_named(struct api_call *c, struct err *e)
{
    c->expert = server_find_expert(c->server, c->options.model);
    c->reason = ROUTER_REASON_MODEL;
    c->confidence = 1.0;
    if (c->expert != NULL)
        return api_check_key(c->server, c->expert, c->key, e);
    return err_set_param(e, ERR_MODEL, "model",
                         "there is no expert '%.80s'; GET /v1/models lists "
                         "what is served, and 'auto' lets the router choose",
                         c->options.model);
}

static size_t collect_message_turns(const struct api_call *c, struct router_turn *turns)
{
    const json_t *messages = c->messages.messages;
    size_t total = json_array_size(messages), count = 0, skip = 0, users = 0;
    for (size_t i = 0; i < total; i++)
        users += strcmp(json_string_value(json_object_get(json_array_get(messages, i), "role")),
                        "user") == 0;
    skip = users > ROUTE_TURNS_MAX ? users - ROUTE_TURNS_MAX : 0;
    for (size_t i = 0; i < total; i++) {
        const json_t *message = json_array_get(messages, i);
        const json_t *content = json_object_get(message, "content");
        if (strcmp(json_string_value(json_object_get(message, "role")), "user") != 0)
            continue;
        if (skip > 0)
            skip--;
        else
            turns[count++] = (struct router_turn){.text = json_string_value(content),
                                                  .len = json_string_length(content)};
    }
    return count;
}

/* A completion body's first text; token arrays cannot be read by a router that knows no tokenizer.
 */
static size_t collect_prompt_turn(const struct api_call *c, struct router_turn *turns)
{
    const json_t *prompt = field_find(c->root, "prompt");
    if (json_is_array(prompt))
        prompt = json_array_get(prompt, 0);
    if (!json_is_string(prompt))
        return 0;
    turns[0] =
        (struct router_turn){.text = json_string_value(prompt), .len = json_string_length(prompt)};
    return 1;
}

/* Labels of experts that the caller's key may use; NULL = what the server allows anyway. */
static bool *labels_for_key(const struct api_call *c)
{
    const struct server *s = c->server;
    bool some = false;
    for (size_t i = 0; i < experts_count(s->experts); i++)
        some |= !api_key_may_use(s, experts_at(s->experts, i), c->key);
    if (!some)
        return NULL;
    size_t labels = router_head_labels(s->head);
    bool *allowed = mem_array(labels + 1, sizeof *allowed);
    for (size_t i = 0; i < labels; i++) {
        int idx = s->label_to_expert[i];
        allowed[i] = s->label_allowed[i] &&
                     (idx < 0 || api_key_may_use(s, experts_at(s->experts, (size_t)idx), c->key));
    }
    return allowed;
}

static void decide(struct api_call *c, struct router_scratch *scratch, struct router_decision *ret)
{
    struct server *s = c->server;
    struct router_turn turns[ROUTE_TURNS_MAX];
    bool *mine = labels_for_key(c);
    const struct router_options options = {.threshold = (double)NAN,
                                           .label_allowed = mine != NULL ? mine : s->label_allowed,
                                           .generalist_idx = -1};
    size_t count =
        c->kind == API_CHAT ? collect_message_turns(c, turns) : collect_prompt_turn(c, turns);
    router_decide(s->head, scratch, turns, count, &options, ret, NULL);
    free(mine);
}

/* The generalist, or for a key that may not use it the first full expert that it may use. */
static struct expert *generalist_for(const struct api_call *c)
{
    const struct server *s = c->server;
    for (size_t i = 0; !api_key_may_use(s, s->generalist, c->key) && i < experts_count(s->experts);
         i++) {
        struct expert *ex = experts_at(s->experts, i);
        if (!expert_info(ex)->is_adapter && expert_ok(ex, NULL) && api_key_may_use(s, ex, c->key))
            return ex;
    }
    return s->generalist;
}

/* A conversation is known by the first words of its user, which every later turn repeats. */
static void note_conversation(struct api_call *c)
{
    struct router_turn turns[ROUTE_TURNS_MAX];
    if (c->kind != API_CHAT || collect_message_turns(c, turns) == 0)
        return;
    c->conversation = hash64_of(turns[0].text, turns[0].len, 1) | 1;
}

enum err_code api_choose_expert(struct api_call *c, struct router_scratch *scratch, struct err *e)
{
    note_conversation(c);
    struct server *s = c->server;
    struct router_decision decision = {.label_idx = -1, .reason = ROUTER_REASON_NO_HEAD};
    if (strcmp(c->options.model, "auto") != 0)
        return choose_named(c, e);
    uint64_t from = clock_ns();
    c->expert = generalist_for(c);
    if (experts_count(s->experts) == 1)
        decision.reason = ROUTER_REASON_ONLY;
    else if (s->head != NULL && scratch != NULL)
        decide(c, scratch, &decision);
    if (decision.label_idx >= 0 && s->label_to_expert[decision.label_idx] >= 0)
        c->expert = experts_at(s->experts, (size_t)s->label_to_expert[decision.label_idx]);
    c->reason = decision.reason;
    c->confidence = decision.reason == ROUTER_REASON_ONLY ? 1.0 : decision.confidence;
    c->route_ns = clock_ns() - from;
    return api_check_key(s, c->expert, c->key, e);
}
