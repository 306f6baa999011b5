/* The fields of a generation body that are not its prompt. Everything the public API names is
 * either used, known to mean nothing here and ignored, or refused by name: a client never believes
 * that something was done which was not. */
#include "daemon/api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"

#define TOKENS_MAX ((int64_t)INT32_MAX)

static void options_init(struct api_options *o)
{
    *o = (struct api_options){
        .temperature = (double)NAN,
        .top_p = (double)NAN,
        .min_p = (double)NAN,
        .typical_p = (double)NAN,
        .repetition_penalty = (double)NAN,
        .presence_penalty = (double)NAN,
        .frequency_penalty = (double)NAN,
        .top_k = API_TOKENS_UNSET,
        .max_tokens = API_TOKENS_UNSET,
        .min_tokens = API_TOKENS_UNSET,
        .n = 1,
        .cache_prompt = true,
    };
}

void api_options_done(struct api_options *o)
{
    free(o->bias);
    o->bias = NULL;
    grammar_unref(&o->grammar);
}

/* ---- sampling ---------------------------------------------------------------------------- */

static enum err_code parse_reals(const json_t *root, struct api_options *o, struct err *e)
{
    const struct {
        const char *key;
        double min, max, *value;
    } fields[] = {
        {"temperature", 0, 2, &o->temperature},
        {"top_p", 0, 1, &o->top_p},
        {"min_p", 0, 1, &o->min_p},
        {"typical_p", 0, 1, &o->typical_p},
        {"presence_penalty", -2, 2, &o->presence_penalty},
        {"frequency_penalty", -2, 2, &o->frequency_penalty},
        {"repetition_penalty", 0.01, 10, &o->repetition_penalty},
    };
    for (size_t i = 0; i < BASE_COUNT(fields); i++) {
        enum err_code code =
            field_real(root, fields[i].key, fields[i].min, fields[i].max, fields[i].value, e);
        if (code != ERR_OK)
            return code;
    }
    return ERR_OK;
}

static enum err_code parse_ints(const json_t *root, enum api_kind kind, struct api_options *o,
                                struct err *e)
{
    const char *cap_key = "max_tokens";
    if (kind == API_CHAT && field_find(root, "max_completion_tokens") != NULL)
        cap_key = "max_completion_tokens";
    int64_t old_cap = API_TOKENS_UNSET, least = kind == API_CHAT ? 1 : 0;
    o->seed_given = field_find(root, "seed") != NULL;
    const struct {
        const char *key;
        int64_t min, max, *value;
    } fields[] = {
        /* Both names are checked; the newer one wins. Harnesses that only score a prompt ask for
           no token of an answer. */
        {"max_tokens", least, TOKENS_MAX, &old_cap},
        {cap_key, least, TOKENS_MAX, &o->max_tokens},
        {"min_tokens", 0, TOKENS_MAX, &o->min_tokens},
        {"top_k", -1, TOKENS_MAX, &o->top_k},
        {"n", 1, API_CHOICES_MAX, &o->n},
        {"seed", INT64_MIN, INT64_MAX, &o->seed},
    };
    for (size_t i = 0; i < BASE_COUNT(fields); i++) {
        enum err_code code =
            field_int(root, fields[i].key, fields[i].min, fields[i].max, fields[i].value, e);
        if (code != ERR_OK)
            return code;
    }
    return ERR_OK;
}

static enum err_code parse_bools(const json_t *root, struct api_options *o, struct err *e)
{
    bool ignored = false;
    const struct {
        const char *key;
        bool *value;
    } fields[] = {
        {"stream", &o->stream},
        {"ignore_eos", &o->ignore_eos},
        {"cache_prompt", &o->cache_prompt},
        {"x_switchyard", &o->want_account},
        {"timings", &o->want_timings},
        {"timings_per_token", &o->want_timings},
        {"store", &ignored},
    };
    for (size_t i = 0; i < BASE_COUNT(fields); i++) {
        enum err_code code = field_bool(root, fields[i].key, fields[i].value, e);
        if (code != ERR_OK)
            return code;
    }
    return ERR_OK;
}

static enum err_code parse_stop_item(const json_t *v, struct api_options *o, struct err *e)
{
    if (!json_is_string(v))
        return field_bad_type(e, "stop", "a string or an array of strings", v);
    if (json_string_length(v) == 0)
        return err_set_param(e, ERR_INVALID, "stop",
                             "'stop' has an empty string; it would end "
                             "every answer before its first token");
    if (strlen(json_string_value(v)) != json_string_length(v))
        return err_set_param(e, ERR_INVALID, "stop", "'stop' has a string with a NUL character");
    if (o->stops_count == API_STOPS_MAX)
        return err_set_param(e, ERR_INVALID, "stop", "'stop' has more than %d strings",
                             API_STOPS_MAX);
    o->stops[o->stops_count++] = json_string_value(v);
    return ERR_OK;
}

static enum err_code parse_stop(const json_t *root, struct api_options *o, struct err *e)
{
    const json_t *stop = field_find(root, "stop");
    if (stop == NULL)
        return ERR_OK;
    if (!json_is_array(stop))
        return parse_stop_item(stop, o, e);
    enum err_code code = ERR_OK;
    for (size_t i = 0; i < json_array_size(stop) && code == ERR_OK; i++)
        code = parse_stop_item(json_array_get(stop, i), o, e);
    return code;
}

static enum err_code parse_logit_bias(const json_t *root, struct api_options *o, struct err *e)
{
    json_t *object = field_find(root, "logit_bias");
    const char *key;
    json_t *value;
    if (object == NULL)
        return ERR_OK;
    if (!json_is_object(object))
        return field_bad_type(e, "logit_bias", "an object from token ids to numbers", object);
    o->bias = mem_array(json_object_size(object) + 1, sizeof *o->bias);
    json_object_foreach(object, key, value)
    {
        char *end;
        long long id = strtoll(key, &end, 10);
        if (end == key || *end != 0 || id < 0 || id > INT32_MAX)
            return err_set_param(e, ERR_INVALID, "logit_bias",
                                 "'logit_bias' has the key '%.40s', "
                                 "which is not a token id",
                                 key);
        double bias = json_number_value(value);
        if (!json_is_number(value) || !(bias >= -100 && bias <= 100))
            return err_set_param(e, ERR_INVALID, "logit_bias",
                                 "'logit_bias' of token %lld must be "
                                 "a number between -100 and 100",
                                 id);
        o->bias[o->bias_count++] = (struct logit_bias){.id = (int32_t)id, .bias = (float)bias};
    }
    return ERR_OK;
}

/* ---- log-probabilities: a flag and a count in chat, a count alone in completions ------------ */

static enum err_code parse_chat_logprobs(const json_t *root, struct api_options *o, struct err *e)
{
    enum err_code code = field_bool(root, "logprobs", &o->want_logprobs, e);
    if (code == ERR_OK)
        code = field_int(root, "top_logprobs", 0, REQUEST_TOP_LOGPROBS_MAX, &o->top_logprobs, e);
    if (code == ERR_OK && !o->want_logprobs && field_find(root, "top_logprobs") != NULL)
        code = err_set_param(e, ERR_INVALID, "top_logprobs",
                             "'top_logprobs' needs 'logprobs' to be true");
    return code;
}

static enum err_code parse_logprobs(const json_t *root, enum api_kind kind, struct api_options *o,
                                    struct err *e)
{
    if (kind == API_CHAT)
        return parse_chat_logprobs(root, o, e);
    o->want_logprobs = field_find(root, "logprobs") != NULL;
    return field_int(root, "logprobs", 0, REQUEST_TOP_LOGPROBS_MAX, &o->top_logprobs, e);
}

/* ---- the rest ------------------------------------------------------------------------------ */

static enum err_code parse_stream_options(const json_t *root, struct api_options *o, struct err *e)
{
    const json_t *so = field_find(root, "stream_options");
    if (so == NULL)
        return ERR_OK;
    if (!json_is_object(so))
        return field_bad_type(e, "stream_options", "an object", so);
    if (!o->stream)
        return err_set_param(e, ERR_INVALID, "stream_options",
                             "'stream_options' needs 'stream' to be true");
    const json_t *usage = field_find(so, "include_usage");
    if (usage != NULL && !json_is_boolean(usage))
        return field_bad_type(e, "stream_options.include_usage", "a boolean", usage);
    o->include_usage = json_is_true(usage);
    return ERR_OK;
}

/* Meaningful, but not done here: ignoring these would give an answer to another question. */
static enum err_code refuse_unsupported(const json_t *root, enum api_kind kind,
                                        const struct api_options *o, struct err *e)
{
    static const char *const chat[] = {"audio", "functions", "function_call", "web_search_options"};
    for (size_t i = 0; kind == API_CHAT && i < BASE_COUNT(chat); i++)
        if (field_find(root, chat[i]) != NULL)
            return err_set_param(e, ERR_UNSUPPORTED, chat[i], "'%s' is not supported", chat[i]);
    const json_t *modalities = field_find(root, "modalities");
    for (size_t i = 0; i < json_array_size(modalities); i++) {
        const char *name = json_string_value(json_array_get(modalities, i));
        if (name == NULL || strcmp(name, "text") != 0)
            return err_set_param(e, ERR_UNSUPPORTED, "modalities",
                                 "only the modality 'text' is supported");
    }
    const json_t *suffix = kind == API_COMPLETION ? field_find(root, "suffix") : NULL;
    if (suffix != NULL && !(json_is_string(suffix) && json_string_length(suffix) == 0))
        return err_set_param(e, ERR_UNSUPPORTED, "suffix", "'suffix' is not supported");
    const json_t *best_of = kind == API_COMPLETION ? field_find(root, "best_of") : NULL;
    if (best_of != NULL && (!json_is_integer(best_of) || json_integer_value(best_of) != o->n))
        return err_set_param(e, ERR_UNSUPPORTED, "best_of",
                             "'best_of' other than 'n' is not supported");
    return ERR_OK;
}

static enum err_code parse_model(const json_t *root, struct api_options *o, struct err *e)
{
    enum err_code code = field_text(root, "model", &o->model, e);
    if (code == ERR_OK && (o->model == NULL || o->model[0] == 0))
        code = err_set_param(e, ERR_INVALID, "model",
                             "'model' is missing; give the name of an "
                             "expert (GET /v1/models lists them) or 'auto'");
    return code;
}

static enum err_code parse_completion_only(const json_t *root, struct api_options *o, struct err *e)
{
    return field_bool(root, "echo", &o->echo, e);
}

enum err_code api_options_parse(const json_t *root, enum api_kind kind, struct api_options *ret,
                                struct err *e)
{
    const char *user = NULL;
    struct api_options o;
    options_init(&o);
    enum err_code code = parse_model(root, &o, e);
    if (code == ERR_OK)
        code = parse_reals(root, &o, e);
    if (code == ERR_OK)
        code = parse_ints(root, kind, &o, e);
    if (code == ERR_OK)
        code = parse_bools(root, &o, e);
    if (code == ERR_OK)
        code = parse_stop(root, &o, e);
    if (code == ERR_OK)
        code = parse_logit_bias(root, &o, e);
    if (code == ERR_OK)
        code = parse_logprobs(root, kind, &o, e);
    if (code == ERR_OK)
        code = parse_stream_options(root, &o, e);
    if (code == ERR_OK)
        code = api_grammar_parse(root, &o.form, &o.grammar, e);
    if (code == ERR_OK)
        code = field_text(root, "user", &user, e);
    if (code == ERR_OK && kind == API_COMPLETION)
        code = parse_completion_only(root, &o, e);
    if (code == ERR_OK)
        code = refuse_unsupported(root, kind, &o, e);
    if (code != ERR_OK) {
        api_options_done(&o);
        return code;
    }
    *ret = o;
    return ERR_OK;
}
