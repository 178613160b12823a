def forecast_lines(f):
    return []
