-- The words of every text, for MetaCLIP's matching (Xu et al. 2023, "Demystifying CLIP Data").
--   , . ; : ? ! and ` become words of their own; tab, newline and return become spaces; words lie
--   between single spaces, so two spaces have an empty word between them. Case stays. No text: NULL.
SELECT
    id,
    string_split(
        regexp_replace(
            translate(text, chr(9) || chr(10) || chr(13), '   '),
            '[,.;:?!`]', ' \0 ', 'g'
        ),
        ' '
    ) AS words
FROM pool;
