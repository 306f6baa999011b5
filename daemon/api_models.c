/* GET /v1/models and /v1/models/{id}. */
#include "daemon/api.h"

#include <string.h>

#include "daemon/api_field.h"
#include "daemon/json_out.h"
#include "daemon/routing.h"

static void put_names(const struct expert_info *info, const struct conf_expert *conf,
                      struct buf *out)
{
    const char *separator = "";
    buf_puts(out, ",\"aliases\":[");
    for (size_t i = 0; i < info->aliases_count; i++, separator = ",") {
        buf_puts(out, separator);
        json_put_str(out, info->aliases[i]);
    }
    for (size_t i = 0; conf != NULL && i < conf->aliases_count; i++, separator = ",") {
        buf_puts(out, separator);
        json_put_str(out, conf->aliases[i]);
    }
    buf_puts(out, "]");
}

/* Three names for the context length: agents look at one or another to size their prompts. */
static void put_expert(struct server *s, struct expert *ex, struct buf *out)
{
    const struct expert_info *info = expert_info(ex);
    const struct server_expert *serving = server_expert_of(s, ex);
    struct err e = {0};
    bool ok = expert_ok(ex, &e);
    buf_puts(out, "{\"id\":");
    json_put_str(out, info->name);
    buf_printf(out, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"switchyard\"",
               (unsigned long long)info->created_s);
    put_names(info, serving->conf, out);
    buf_puts(out, ",\"description\":");
    json_put_str(out, serving->conf != NULL && serving->conf->description[0] != 0
                          ? serving->conf->description
                          : info->description);
    buf_printf(out,
               ",\"context_length\":%u,\"max_model_len\":%u,\"meta\":{\"n_ctx\":%u,"
               "\"n_params\":%llu,\"size\":%llu,\"architecture\":",
               serving->context, serving->context, serving->context,
               (unsigned long long)info->parameters, (unsigned long long)info->bytes);
    json_put_str(out, info->architecture);
    buf_puts(out, ",\"types\":");
    json_put_str(out, info->types);
    buf_puts(out, ",\"base\":");
    json_put_str(out, info->base != NULL && info->base[0] != 0 ? info->base : NULL);
    buf_puts(out, ok ? "}" : "},\"error\":");
    if (!ok)
        json_put_str(out, e.msg);
    buf_puts(out, "}");
}

static void put_encoder(struct server *s, struct buf *out)
{
    const struct route_encoder *n = routing_encoder(s);
    if (n == NULL)
        return;
    buf_puts(out, "{\"id\":");
    json_put_str(out, encoder_name(route_encoder_model(n)));
    buf_printf(out,
               ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"switchyard\","
               "\"description\":\"sentence encoder of the router, for /v1/embeddings\","
               "\"context_length\":%u},",
               (unsigned long long)expert_info(s->generalist)->created_s,
               encoder_tokens_max(route_encoder_model(n)));
}

static void put_auto(struct server *s, struct buf *out)
{
    buf_printf(out,
               "{\"id\":\"auto\",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"switchyard\","
               "\"description\":\"the router chooses an expert for each prompt\"}",
               (unsigned long long)expert_info(s->generalist)->created_s);
}

void api_put_models(struct server *s, struct buf *out)
{
    size_t count = experts_count(s->experts);
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < count; i++) {
        put_expert(s, experts_at(s->experts, i), out);
        buf_puts(out, ",");
    }
    put_encoder(s, out);
    put_auto(s, out);
    buf_puts(out, "]}");
}

enum err_code api_put_model(struct server *s, const char *id, struct buf *out, struct err *e)
{
    struct expert *ex = strcmp(id, "auto") == 0 ? NULL : server_find_expert(s, id);
    if (ex != NULL) {
        put_expert(s, ex, out);
        return ERR_OK;
    }
    if (strcmp(id, "auto") == 0) {
        put_auto(s, out);
        return ERR_OK;
    }
    return err_set_param(e, ERR_MODEL, "model",
                         "there is no expert '%.80s'; GET /v1/models lists what is served", id);
}
