-- SQLite: note what became of a url, over what was noted before.
INSERT OR REPLACE INTO entries VALUES (
    :url_number, :outcome, :detail, :retryable, :attempts, :due, :finished, :seconds,
    :bytes_served, :final_url, :content_type, :served_width, :served_height, :served_phash,
    :stored_width, :stored_height, :jpeg
);
