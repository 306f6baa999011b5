/* Which expert answers: the one the client named, or for `auto` the one the router picks. */
#include "daemon/api.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"
#include "daemon/api_route.h"

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
    skip = users > API_ROUTE_TURNS_MAX ? users - API_ROUTE_TURNS_MAX : 0;
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

/* Is the newest message the answer to a tool call? */
static bool answers_tool(const struct api_call *c)
{
    const json_t *messages = c->messages.messages;
    size_t total = json_array_size(messages);
    const char *role =
        total > 0 ? json_string_value(json_object_get(json_array_get(messages, total - 1), "role"))
                  : NULL;
    return role != NULL && strcmp(role, "tool") == 0;
}

void api_route_query(const struct api_call *c, struct router_turn *turns, struct routing_query *ret)
{
    const char *user = json_string_value(field_find(c->root, "user"));
    *ret = (struct routing_query){
        .turns = turns,
        .turns_count =
            c->kind == API_CHAT ? collect_message_turns(c, turns) : collect_prompt_turn(c, turns),
        .tool_pending = c->kind == API_CHAT && answers_tool(c),
        .has_tools = c->tools.list != NULL,
        .json_wanted = c->options.grammar != NULL || field_find(c->root, "response_format") != NULL,
        .key = c->key,
        .user = user,
        .conversation =
            c->header != NULL ? c->header(c->header_ctx, "x-switchyard-conversation") : NULL,
        .header = c->header,
        .header_ctx = c->header_ctx,
        .id = c->id,
    };
}

/* A conversation is known by the first words of its user, which every later turn repeats. */
static void note_conversation(struct api_call *c)
{
    struct router_turn turns[API_ROUTE_TURNS_MAX];
    if (c->kind != API_CHAT || collect_message_turns(c, turns) == 0)
        return;
    c->conversation = hash64_of(turns[0].text, turns[0].len, 1) | 1;
}

enum err_code api_choose_expert(struct api_call *c, struct router_scratch *scratch, struct err *e)
{
    struct router_turn turns[API_ROUTE_TURNS_MAX];
    struct routing_query q;
    note_conversation(c);
    if (strcmp(c->options.model, "auto") != 0)
        return choose_named(c, e);
    uint64_t from = clock_ns();
    struct routing_result *r = mem_alloc(sizeof *r);
    api_route_query(c, turns, &q);
    routing_decide(c->server, scratch, &q, r);
    c->expert = r->expert;
    c->reason = r->reason;
    c->confidence = r->confidence;
    c->route_stage = r->decision.stage;
    memcpy(c->stage_ns, r->decision.stage_ns, sizeof c->stage_ns);
    c->switch_avoided = r->switched;
    c->route_ns = clock_ns() - from;
    free(r);
    return api_check_key(c->server, c->expert, c->key, e);
}

enum err_code api_put_route(struct server *s, const char *body, size_t len,
                            const struct api_call *from, struct router_scratch *scratch,
                            struct buf *out, struct err *e)
{
    struct api_call *c = NULL;
    struct router_turn turns[API_ROUTE_TURNS_MAX];
    struct routing_query q;
    json_t *root = NULL;
    enum err_code code = field_parse_body(body, len, &root, e);
    if (code != ERR_OK)
        return code;
    enum api_kind kind = field_find(root, "messages") != NULL ? API_CHAT : API_COMPLETION;
    json_decref(root);
    code = api_call_open(s, kind, body, len, &c, e);
    if (code != ERR_OK)
        return code;
    c->key = from->key;
    c->header = from->header;
    c->header_ctx = from->header_ctx;
    struct routing_result *r = mem_alloc(sizeof *r);
    api_route_query(c, turns, &q);
    routing_decide(s, scratch, &q, r);
    routing_put(s, &q, r, out);
    free(r);
    api_call_close(&c);
    return ERR_OK;
}
