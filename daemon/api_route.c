/* Which expert answers: the one the client named, or for `auto` the one the router picks. */
#include "daemon/api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"

#define ROUTE_TURNS_MAX                                                                            \
    64 /* user turns that are read, newest last; the router bounds their bytes */

static enum err_code choose_named(struct api_call *c, struct err *e)
{
    c->expert = server_find_expert(c->server, c->options.model);
    c->reason = ROUTER_REASON_MODEL;
    c->confidence = 1.0;
    if (c->expert != NULL)
        return ERR_OK;
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

static void decide(struct api_call *c, struct router_scratch *scratch, struct router_decision *ret)
{
    struct server *s = c->server;
    struct router_turn turns[ROUTE_TURNS_MAX];
    const struct router_options options = {
        .threshold = (double)NAN, .label_allowed = s->label_allowed, .generalist_idx = -1};
    size_t count =
        c->kind == API_CHAT ? collect_message_turns(c, turns) : collect_prompt_turn(c, turns);
    router_decide(s->head, scratch, turns, count, &options, ret, NULL);
}

enum err_code api_choose_expert(struct api_call *c, struct router_scratch *scratch, struct err *e)
{
    struct server *s = c->server;
    struct router_decision decision = {.label_idx = -1, .reason = ROUTER_REASON_NO_HEAD};
    if (strcmp(c->options.model, "auto") != 0)
        return choose_named(c, e);
    uint64_t from = clock_ns();
    c->expert = s->generalist;
    if (experts_count(s->experts) == 1)
        decision.reason = ROUTER_REASON_ONLY;
    else if (s->head != NULL && scratch != NULL)
        decide(c, scratch, &decision);
    if (decision.label_idx >= 0 && s->label_to_expert[decision.label_idx] >= 0)
        c->expert = experts_at(s->experts, (size_t)s->label_to_expert[decision.label_idx]);
    c->reason = decision.reason;
    c->confidence = decision.reason == ROUTER_REASON_ONLY ? 1.0 : decision.confidence;
    c->route_ns = clock_ns() - from;
    return ERR_OK;
}
